//! Matches: sigmoids of weights of one axis, as layers have them for what their heads mix by, each made narrower or not
//! Becomes: one sigmoid of all that are alike, made narrower once, and a split
//! Exact: yes
//! Declines when: there are two, where the split costs what a sigmoid saves, or it is computed with a weight as it loads

use crate::canon::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::serving_graph::join_weights::is_stored;
use dijiang_format::dtype::DType;
use dijiang_format::joined::MOST_PARTS;

pub(super) struct JoinedShares;

const LEAST: usize = 3;

impl GraphRule for JoinedShares {
    fn name(&self) -> &'static str {
        "joined_shares"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let first = share(w.graph, node)?;
            let all = w.graph.order().into_iter().filter_map(|id| share(w.graph, w.graph.node(id)));
            let alike: Vec<Share> = all.filter(|other| other.dtype == first.dtype).collect();
            let run = alike.chunks(MOST_PARTS).find(|run| run[0].y == first.y && run.len() >= LEAST)?;
            let weights: Vec<ValueId> = run.iter().map(|one| one.weight).collect();
            let sizes: Vec<i64> = run.iter().map(|one| one.size).collect();
            let joined = w.patch.concat(&weights, 0);
            let joined = w.patch.sigmoid(joined);
            let joined = w.patch.cast(joined, first.dtype);
            let parts = w.patch.split(joined, 0, &sizes);
            for (one, part) in run.iter().zip(&parts) {
                w.stand_for(one.y, *part);
            }
            // The first stands for itself by now.
            None
        })
    }
}

struct Share {
    weight: ValueId,
    size: i64,
    /// What is read of it, and its type.
    y: ValueId,
    dtype: DType,
}

/// Whether it is spread over the columns of a weight.
fn scales_a_weight(graph: &Graph, share: ValueId) -> bool {
    let only_reader = |value: ValueId| match graph.value(value).uses[..] {
        [Use::Node { node, slot: 0 }] => Some(graph.node(node)),
        _ => None,
    };
    let spread = only_reader(share).and_then(|node| only_reader(node.outputs[0]));
    spread.is_some_and(|node| node.op.is("Expand"))
}

fn share(graph: &Graph, node: &Node) -> Option<Share> {
    let weight = node.input(0).filter(|weight| node.op.is("Sigmoid") && is_stored(graph, *weight))?;
    let [size] = graph.value(weight).ty.shape.as_deref()? else { return None };
    let open = node.outputs[0];
    let y = match graph.value(open).uses[..] {
        [Use::Node { node, slot: 0 }] if graph.node(node).op.is("Cast") => graph.node(node).outputs[0],
        _ => open,
    };
    if scales_a_weight(graph, open) {
        return None;
    }
    Some(Share { weight, size: size.known()? as i64, y, dtype: graph.value(y).ty.dtype? })
}

#[cfg(test)]
mod tests {
    use super::JoinedShares;
    use crate::fuse::tests::after;
    use std::fmt::Write as _;

    fn text(layers: usize) -> String {
        let mut text = "graph \"g\" {\n  input %x: f16[batch, 2]\n".to_owned();
        for i in 0..layers {
            let _ = write!(
                text,
                "  weight %m{i}: f32[2] = random({i})
  %s{i} = Sigmoid(%m{i})
  %c{i} = Cast(%s{i}) {{to: \"f16\"}}
  %y{i} = Mul(%x, %c{i})
  output \"y{i}\" %y{i}
"
            );
        }
        text + "}"
    }

    #[test]
    fn shares_of_three_layers_are_one_sigmoid() {
        insta::assert_snapshot!(after(&JoinedShares, &text(3), &[("x", &[3, 2])]));
    }

    #[test]
    fn those_of_two_stay() {
        insta::assert_snapshot!(after(&JoinedShares, &text(2), &[("x", &[3, 2])]));
    }
}
