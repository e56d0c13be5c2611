//! Matches: a split of a part of a split along the same axis, with nothing else that reads the part
//! Becomes: one split
//! Exact: yes
//! Declines when: there would be more than four parts, whose addresses CUDA's kernel first copies from the host

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct SplitAgain;

const MOST: usize = 4;

impl GraphRule for SplitAgain {
    fn name(&self) -> &'static str {
        "split_again"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.is("Split") {
                at_once(w, node);
            }
            None
        })
    }
}

fn at_once(w: &mut Sweep<'_>, outer: &Node) -> Option<()> {
    let graph = w.graph;
    let axis = axis(graph, outer)?;
    let inner: Vec<Option<&Node>> = outer.outputs.iter().map(|part| again(graph, *part, axis)).collect();
    let count = inner.iter().map(|inner| inner.map_or(1, |inner| inner.outputs.len())).sum::<usize>();
    if inner.iter().all(Option::is_none) || count > MOST {
        return None;
    }
    let leaves = outer.outputs.iter().zip(&inner).flat_map(|(part, inner)| match inner {
        Some(inner) => inner.outputs.clone(),
        None => vec![*part],
    });
    let leaves: Vec<ValueId> = leaves.collect();
    let size = |leaf: &ValueId| Some(graph.value(*leaf).ty.shape.as_ref()?[axis].known()? as i64);
    let sizes: Vec<i64> = leaves.iter().map(size).collect::<Option<_>>()?;
    let x = w.input(outer, 0)?;
    let parts = w.patch.split(x, axis as i64, &sizes);
    for (leaf, part) in leaves.into_iter().zip(parts) {
        w.stand_for(leaf, part);
    }
    Some(())
}

fn axis(graph: &Graph, split: &Node) -> Option<usize> {
    let rank = graph.value(split.input(0)?).ty.rank()?;
    let axis = split.op.int("axis").unwrap_or_default();
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()
}

/// The split that alone reads a part.
fn again(graph: &Graph, part: ValueId, along: usize) -> Option<&Node> {
    let [Use::Node { node, slot: 0 }] = graph.value(part).uses[..] else { return None };
    Some(graph.node(node)).filter(|node| node.op.is("Split") && axis(graph, node) == Some(along))
}

#[cfg(test)]
mod tests {
    use super::SplitAgain;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};

    fn text(axis: i64, more: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, 4, 8]
  const %outer: i64[3] = [4, 2, 2]
  const %inner: i64[2] = [2, 2]
  %a, %b, %c = Split(%x, %outer) {{axis: 2}}
  %d, %e = Split(%a, %inner) {{axis: {axis}}}
  output "b" %b
  output "c" %c
  output "d" %d
  output "e" %{more}
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[3, 4, 8])];

    #[test]
    fn a_part_that_is_split_again_is_split_at_once() {
        insta::assert_snapshot!(after(&SplitAgain, &text(-1, "e"), &INPUTS));
    }

    #[test]
    fn another_axis_another_reader_or_five_parts_stay() {
        let five = text(2, "e")
            .replace("[4, 2, 2]", "[4, 2, 1, 1]")
            .replace("i64[3]", "i64[4]")
            .replace("%a, %b, %c =", "%a, %b, %c, %f =");
        for text in [text(1, "e"), text(2, "a"), five] {
            assert_eq!(after(&SplitAgain, &text, &INPUTS), print(&parse(&text).expect("a graph")));
        }
    }
}
