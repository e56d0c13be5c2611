//! Matches: a rotation of the first dims of `[batch, heads, sequence, dim]`, with the others put after it as they were
//! Becomes: `RotaryEmbedding` of the whole, which is told how many dims it turns
//! Exact: yes
//! Declines when: what follows the rotation is not what was split off x

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct PartialRotary;

impl GraphRule for PartialRotary {
    fn name(&self) -> &'static str {
        "partial_rotary"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.is("Concat") {
            true => fused(w, node),
            false => None,
        })
    }
}

fn fused(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let [Some(rotated), Some(rest)] = node.inputs[..] else { return None };
    let turn = graph.node(graph.producer(rotated)?.0);
    let is_whole = turn.op.int("rotary_embedding_dim") == Some(0) && turn.op.int("interleaved") == Some(0);
    let is_rotary = turn.op.domain() == "com.microsoft" && turn.op.name() == "RotaryEmbedding" && is_whole;
    let (split, first) = graph.producer(turn.input(0)?)?;
    let parts = graph.node(split);
    let shape = |value: ValueId| graph.value(value).ty.shape.clone();
    let x = parts.input(0)?;
    let dims = shape(x)?;
    let over_last = |op: &Op| matches!(op.int("axis"), Some(-1 | 3));
    let fits = is_rotary
        && dims.len() == 4
        && parts.op.is("Split")
        && parts.outputs.len() == 2
        && over_last(&parts.op)
        && over_last(&node.op)
        && first == 0
        && graph.producer(rest) == Some((split, 1));
    if !fits {
        return None;
    }
    let (heads, dim) = (dims[1].known()?, shape(rotated)?[3].known()?);
    let op = turn.op.clone().with("num_heads", heads as i64).with("rotary_embedding_dim", dim as i64);
    let mut inputs = vec![w.current(x)];
    for slot in 1..turn.inputs.len() {
        inputs.push(w.input(turn, slot)?);
    }
    Some(vec![w.patch.node(op, &inputs)])
}

#[cfg(test)]
mod tests {
    use super::PartialRotary;
    use crate::fuse::tests::after;

    #[test]
    fn only_what_was_split_off_comes_back_after_the_rotation() {
        insta::assert_snapshot!(after(
            &PartialRotary,
            r#"graph "g" {
  input %x: f32[batch, 3, 5, 8]
  input %z: f32[batch, 3, 5, 4]
  input %cos: f32[5, 2]
  input %sin: f32[5, 2]
  const %rows: i64[1] = [0]
  const %sizes: i64[2] = [4, 4]
  %p, %q = Split(%x, %sizes) {axis: -1}
  %t = com.microsoft.RotaryEmbedding(%p, %rows, %cos, %sin)
  %y = Concat(%t, %q) {axis: -1}
  output "y" %y
  %a = Concat(%t, %z) {axis: -1}
  output "others" %a
  %b = Concat(%q, %t) {axis: -1}
  output "before" %b
}"#,
            &[("x", &[2, 3, 5, 8]), ("z", &[2, 3, 5, 4]), ("cos", &[5, 2]), ("sin", &[5, 2])],
        ));
    }
}
