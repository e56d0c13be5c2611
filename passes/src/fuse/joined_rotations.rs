//! Matches: queries and keys of one token, rotated apart from two neighbours of one split, and then put one after the
//! other along the heads, as features of both read them beside a window that reads each
//! Becomes: one rotation of the heads of both, and a split along the heads for who reads one
//! Exact: yes
//! Declines when: the two are rotated otherwise or by other tables, are no neighbours, or lengths are open

use super::joined_features::as_one;
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct JoinedRotations;

/// Where the heads of `[batch, heads, 1, head_dim]` are.
const HEADS: usize = 1;

impl GraphRule for JoinedRotations {
    fn name(&self) -> &'static str {
        "joined_rotations"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let both = node.op.is("Concat") && node.op.int("axis") == Some(HEADS as i64);
            both.then(|| join(w, node))?.map(|joined| vec![joined])
        })
    }
}

fn join(w: &mut Sweep<'_>, concat: &Node) -> Option<ValueId> {
    let &[Some(q), Some(k)] = &concat.inputs[..] else { return None };
    let rotated = [q, k].iter().all(|value| is_rotated(w.graph, *value) && w.is_untouched(*value));
    let heads = |value: ValueId| Some(w.graph.value(value).ty.shape.as_ref()?.get(HEADS)?.known()? as i64);
    let sizes = [heads(q)?, heads(k)?];
    let joined = rotated.then(|| as_one(w, [q, k], HEADS))??;
    let parts = w.patch.split(joined, HEADS as i64, &sizes);
    w.stand_for(q, parts[0]);
    w.stand_for(k, parts[1]);
    Some(joined)
}

fn is_rotated(graph: &Graph, value: ValueId) -> bool {
    graph.producer(value).is_some_and(|(node, _)| graph.node(node).op.name() == "RotaryEmbedding")
}

#[cfg(test)]
mod tests {
    use super::JoinedRotations;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};

    fn text(positions_of_keys: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, 1, 16]
  const %positions: i64[2, 1] = [1, 5]
  const %others: i64[2, 1] = [2, 5]
  weight %cos: f32[8, 2] = random(1)
  weight %sin: f32[8, 2] = random(2)
  const %sizes: i64[3] = [8, 4, 4]
  const %query_heads: i64[4] = [0, 2, 1, 4]
  const %key_heads: i64[4] = [0, 1, 1, 4]
  %q, %k, %v = Split(%x, %sizes) {{axis: 2}}
  %q1 = Reshape(%q, %query_heads)
  %k1 = Reshape(%k, %key_heads)
  %q2 = com.microsoft.RotaryEmbedding(%q1, %positions, %cos, %sin) {{num_heads: 2}}
  %k2 = com.microsoft.RotaryEmbedding(%k1, {positions_of_keys}, %cos, %sin) {{num_heads: 1}}
  %both = Concat(%q2, %k2) {{axis: 1}}
  %f = Exp(%both)
  %ring = Neg(%k2)
  %scores = Abs(%q2)
  output "f" %f
  output "ring" %ring
  output "scores" %scores
  output "v" %v
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 1, 16])];

    #[test]
    fn heads_of_queries_and_keys_turn_at_once() {
        insta::assert_snapshot!(after(&JoinedRotations, &text("%positions"), &INPUTS));
    }

    #[test]
    fn other_positions_keep_them_apart() {
        let text = text("%others");
        assert_eq!(after(&JoinedRotations, &text, &INPUTS), print(&parse(&text).expect("a graph")));
    }
}
