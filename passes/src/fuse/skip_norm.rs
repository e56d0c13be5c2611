//! Matches: a norm, plain or root-mean-square, of a sum of two values of one shape
//! Becomes: `SkipLayerNormalization` or `SkipSimplifiedLayerNormalization`, which gives the sum too, and adds
//! the bias of the second value, so that the product that made it has none to copy first
//! Exact: yes, up to rounding
//! Declines when: the sum broadcasts, or is not `[batch, sequence, width]`

use super::bias_gelu::biased;
use crate::canon::{Law, Writer, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct SkipNorm;

const PLAIN: &str = "SkipLayerNormalization";

impl Law for SkipNorm {
    fn name(&self) -> &'static str {
        "skip_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.name() {
            "LayerNormalization" if node.outputs.len() == 1 => fused(w, node, PLAIN),
            "SimplifiedLayerNormalization" if node.outputs.len() == 1 => {
                fused(w, node, "SkipSimplifiedLayerNormalization")
            }
            _ => None,
        })
    }
}

fn fused(w: &mut Writer<'_>, node: &Node, name: &str) -> Option<Vec<ValueId>> {
    let sum = node.input(0)?;
    // Where another norm has taken the sum, it is made already.
    let add = w.graph.made_by(sum, "Add").filter(|_| w.is_untouched(sum))?;
    let shape = |value: ValueId| w.graph.value(value).ty.shape.clone();
    let (a, b, whole) = (add.input(0)?, add.input(1)?, shape(sum)?);
    let same = shape(a).as_ref() == Some(&whole) && shape(b).as_ref() == Some(&whole);
    let known = whole.iter().all(|dim| *dim != crate::ir::shape::Dim::Unknown);
    let over_last = matches!(node.op.int("axis"), Some(-1 | 2));
    if !same || !known || whole.len() != 3 || !over_last {
        return None;
    }
    let (b, bias) = match biased(w.graph, b).filter(|_| w.graph.value(b).uses.len() == 1) {
        Some([b, bias]) => (b, Some(bias)),
        None => (b, None),
    };
    let mut inputs = vec![Some(w.current(a)), Some(w.current(b))];
    for slot in 1..node.inputs.len() {
        inputs.push(Some(w.input(node, slot)?));
    }
    if let Some(bias) = bias {
        inputs.resize(if name == PLAIN { 4 } else { 3 }, None);
        inputs.push(Some(w.current(bias)));
    }
    let op = Op::in_domain("com.microsoft", name).with("epsilon", node.op.float("epsilon")?);
    let made = w.patch.node_outputs(op, &inputs, 4);
    w.stand_for(sum, made[3]);
    Some(vec![made[0]])
}

#[cfg(test)]
mod tests {
    use super::SkipNorm;
    use crate::fuse::tests::after;

    #[test]
    fn a_residual_goes_into_the_norm_and_comes_out_of_it() {
        insta::assert_snapshot!(after(
            &SkipNorm,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %y: f32[batch, time, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %b: f32[4] = [0.5, -0.5, 1.0, 0.0]
  %s = Add(%x, %y)
  %n = SimplifiedLayerNormalization(%s, %w) {epsilon: 0.25}
  %t = Add(%s, %n)
  %m = LayerNormalization(%t, %w, %b) {epsilon: 0.25}
  %z = Add(%t, %m)
  output "z" %z
}"#,
            &[("x", &[2, 3, 4]), ("y", &[2, 3, 4])],
        ));
    }

    #[test]
    fn a_bias_of_the_second_value_is_added_with_it() {
        insta::assert_snapshot!(after(
            &SkipNorm,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %y: f32[batch, time, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %b: f32[4] = [0.5, -0.5, 1.0, 0.0]
  weight %c: f32[4] = [1.5, 0.0, 2.0, -1.0]
  %p = Add(%y, %c)
  %s = Add(%x, %p)
  %n = LayerNormalization(%s, %w, %b) {epsilon: 0.25}
  %q = Add(%n, %c)
  %t = Add(%s, %q)
  %m = SimplifiedLayerNormalization(%t, %w) {epsilon: 0.25}
  %z = Add(%t, %m)
  output "z" %z
}"#,
            &[("x", &[2, 3, 4]), ("y", &[2, 3, 4])],
        ));
    }

    #[test]
    fn sums_that_broadcast_and_second_norms_of_one_sum_stay() {
        insta::assert_snapshot!(after(
            &SkipNorm,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %y: f32[batch, time, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %b: f32[4] = [0.5, -0.5, 1.0, 0.0]
  %s = Add(%x, %b)
  %n = SimplifiedLayerNormalization(%s, %w) {epsilon: 0.25}
  %t = Add(%x, %y)
  %m = LayerNormalization(%t, %w, %b) {epsilon: 0.25}
  %k = LayerNormalization(%t, %b, %w) {epsilon: 0.25}
  output "n" %n
  output "m" %m
  output "k" %k
}"#,
            &[("x", &[2, 3, 4]), ("y", &[2, 3, 4])],
        ));
    }
}
