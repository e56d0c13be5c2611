//! Matches: a norm, plain or root-mean-square, of a sum of two values of one shape
//! Becomes: `SkipLayerNormalization` or `SkipSimplifiedLayerNormalization`, which gives the sum too, and adds
//! the bias of one value, so that the product that made it has none to copy first. Another norm of the same
//! sum adds once more: a GPU takes half as long for it as for the plain norm
//! Exact: yes, up to rounding
//! Declines when: the sum broadcasts, or is not `[batch, sequence, width]`, or the norm is over another axis

use super::bias_gelu::biased;
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use std::collections::BTreeMap;

pub(super) struct SkipNorm;

const PLAIN: &str = "SkipLayerNormalization";

impl GraphRule for SkipNorm {
    fn name(&self) -> &'static str {
        "skip_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mut sums = BTreeMap::new();
        rewrite_nodes(graph, self.name(), |w, node| match node.op.name() {
            "LayerNormalization" if node.outputs.len() == 1 => fused(w, node, PLAIN, &mut sums),
            "SimplifiedLayerNormalization" if node.outputs.len() == 1 => {
                fused(w, node, "SkipSimplifiedLayerNormalization", &mut sums)
            }
            _ => None,
        })
    }
}

/// What a sum is of.
#[derive(Clone, Copy)]
struct Sum {
    parts: [ValueId; 2],
    bias: Option<ValueId>,
}

fn fused(
    w: &mut Sweep<'_>,
    node: &Node,
    name: &str,
    sums: &mut BTreeMap<ValueId, Sum>,
) -> Option<Vec<ValueId>> {
    let whole = node.input(0).filter(|_| matches!(node.op.int("axis"), Some(-1 | 2)))?;
    let before = sums.get(&whole).copied();
    let sum = match before {
        Some(sum) => sum,
        None => sum_of(w, whole)?,
    };
    let op = Op::in_domain("com.microsoft", name).with("epsilon", node.op.float("epsilon")?);
    let mut inputs: Vec<Option<ValueId>> = sum.parts.map(Some).to_vec();
    for slot in 1..node.inputs.len() {
        inputs.push(Some(w.input(node, slot)?));
    }
    if let Some(bias) = sum.bias {
        inputs.resize(if name == PLAIN { 4 } else { 3 }, None);
        inputs.push(Some(bias));
    }
    if before.is_some() {
        return Some(w.patch.node_outputs(op, &inputs, 1));
    }
    let made = w.patch.node_outputs(op, &inputs, 4);
    w.stand_for(whole, made[3]);
    sums.insert(whole, sum);
    Some(vec![made[0]])
}

fn sum_of(w: &Sweep<'_>, sum: ValueId) -> Option<Sum> {
    let add = w.graph.made_by(sum, "Add").filter(|_| w.is_untouched(sum))?;
    let shape = |value: ValueId| w.graph.value(value).ty.shape.clone();
    let (a, b, whole) = (add.input(0)?, add.input(1)?, shape(sum)?);
    let same = shape(a).as_ref() == Some(&whole) && shape(b).as_ref() == Some(&whole);
    let all_known = whole.iter().all(|dim| *dim != Dim::Unknown);
    if !same || !all_known || whole.len() != 3 {
        return None;
    }
    let with_bias = |value: ValueId| biased(w.graph, value).filter(|_| w.graph.value(value).uses.len() == 1);
    let (parts, bias) = match (with_bias(a), with_bias(b)) {
        (_, Some([b, bias])) => ([a, b], Some(bias)),
        (Some([a, bias]), None) => ([b, a], Some(bias)),
        (None, None) => ([a, b], None),
    };
    Some(Sum { parts: parts.map(|part| w.current(part)), bias: bias.map(|bias| w.current(bias)) })
}

#[cfg(test)]
mod tests {
    use super::SkipNorm;
    use crate::canon::GraphRule;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};

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
  %k = LayerNormalization(%t, %w, %b) {epsilon: 0.25}
  %z = Add(%t, %m)
  output "z" %z
  output "k" %k
}"#,
            &[("x", &[2, 3, 4]), ("y", &[2, 3, 4])],
        ));
    }

    #[test]
    fn a_second_norm_adds_again_and_others_stay() {
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

    /// The interpreter does not compute it, and nor does the fused operator.
    #[test]
    fn a_second_norm_over_another_axis_stays() {
        let text = r#"graph "g" {
  input %x: f32[batch, 3, 4]
  input %y: f32[batch, 3, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %o: f32[3, 4] = [1.0, 2.0, 3.0, 4.0, 0.5, -0.5, 1.0, 0.0, 1.0, 1.0, -1.0, 2.0]
  %t = Add(%x, %y)
  %m = LayerNormalization(%t, %w, %w) {epsilon: 0.25}
  %l = LayerNormalization(%t, %o, %o) {axis: 1, epsilon: 0.25}
  output "m" %m
  output "l" %l
}"#;
        let mut graph = parse(text).expect("it parses");
        SkipNorm.sweep(&mut graph).expect("a patch");
        let after = print(&graph);
        assert_eq!(after.matches(" = LayerNormalization").count(), 1, "{after}");
        assert!(after.contains("%o, %o) {axis: 1, epsilon: 0.25}"), "{after}");
    }
}
