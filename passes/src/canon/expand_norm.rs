//! Matches: `RMSNormalization`, `SimplifiedLayerNormalization`, and the norms that ONNX Runtime fuses
//! with a residual or an embedding
//! Becomes: the sum that is normalised, and `LayerNormalization` or a root-mean-square norm in plain
//! operators
//! Exact: yes, up to rounding

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

pub(super) struct ExpandNorm;

impl GraphRule for ExpandNorm {
    fn name(&self) -> &'static str {
        "expand_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match (node.op.domain(), node.op.name()) {
            ("", "RMSNormalization" | "SimplifiedLayerNormalization") => rms(w, node),
            ("com.microsoft", "SkipLayerNormalization") => skip(w, node, 4),
            ("com.microsoft", "SkipSimplifiedLayerNormalization") => skip(w, node, 3),
            ("com.microsoft", "EmbedLayerNormalization") => embed(w, node),
            _ => None,
        })
    }
}

fn is_unused(w: &Sweep<'_>, node: &Node, slot: usize) -> bool {
    node.outputs.get(slot).is_none_or(|v| w.graph.value(*v).uses.is_empty())
}

fn rms(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let (x, weight) = (w.input(node, 0)?, w.input(node, 1)?);
    let rank = w.patch.ty(x).rank()? as i64;
    let axis = node.op.int("axis")?;
    w.patch.ty(x).dtype?;
    if (axis != -1 && axis != rank - 1) || !is_unused(w, node, 1) {
        return None;
    }
    Some(vec![w.patch.rms_norm(x, weight, node.op.float("epsilon")?.into())])
}

/// The norm of input + skip + bias. The sum is the fourth output.
fn skip(w: &mut Sweep<'_>, node: &Node, bias: usize) -> Option<Vec<ValueId>> {
    let (x, skip, weight) = (w.input(node, 0)?, w.input(node, 1)?, w.input(node, 2)?);
    w.patch.ty(x).dtype?;
    if !is_unused(w, node, 1) || !is_unused(w, node, 2) {
        return None;
    }
    let mut sum = w.patch.add(x, skip);
    if let Some(bias) = w.input(node, bias) {
        sum = w.patch.add(sum, bias);
    }
    let epsilon = node.op.float("epsilon")?;
    let out = match bias {
        3 => w.patch.rms_norm(sum, weight, epsilon.into()),
        _ => layer_norm(w, sum, weight, w.input(node, 3), epsilon),
    };
    // Nothing reads mean and deviation; anything of no fixed type can stand for them.
    let unread = node.outputs.get(1..node.outputs.len().min(3)).unwrap_or_default();
    let unread: Vec<ValueId> = unread.to_vec();
    Some([vec![out], unread, vec![sum]].concat())
}

fn layer_norm(
    w: &mut Sweep<'_>,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    epsilon: f32,
) -> ValueId {
    let op = Op::new("LayerNormalization").with("epsilon", epsilon).with("axis", -1);
    w.patch.node_outputs(op, &[Some(x), Some(weight), bias][..if bias.is_some() { 3 } else { 2 }], 1)[0]
}

/// The sum of the rows of up to three tables, and how many tokens of each text the mask keeps.
fn embed(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let ids = w.input(node, 0)?;
    let (words, positions) = (w.input(node, 2)?, w.input(node, 3)?);
    let (weight, bias) = (w.input(node, 5)?, w.input(node, 6)?);
    let mask = w.input(node, 7);
    if mask.is_none() && !is_unused(w, node, 1) {
        return None;
    }
    let place = match w.input(node, 8) {
        Some(given) => given,
        None => {
            let time = w.patch.shape_of(ids, 1, 2);
            let time = w.patch.squeeze(time, &[0]);
            w.patch.range(time)
        }
    };
    let (words, positions) = (w.patch.gather(words, ids, 0), w.patch.gather(positions, place, 0));
    let mut sum = w.patch.add(words, positions);
    if let (Some(segments), Some(table)) = (w.input(node, 1), w.input(node, 4)) {
        let rows = w.patch.gather(table, segments, 0);
        sum = w.patch.add(sum, rows);
    }
    let out = layer_norm(w, sum, weight, Some(bias), node.op.float("epsilon")?);
    let count = match mask {
        Some(mask) => tokens_kept(w, mask),
        None => *node.outputs.get(1).unwrap_or(&out),
    };
    Some(vec![out, count, sum])
}

fn tokens_kept(w: &mut Sweep<'_>, mask: ValueId) -> ValueId {
    let dtype = w.patch.dtype(mask);
    let one = w.patch.constant("one", Tensor::scalar(dtype, 1.0));
    let kept = w.patch.equal(mask, one);
    let kept = w.patch.cast(kept, DType::I32);
    w.patch.reduce("ReduceSum", kept, &[1], false)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_close};

    const NORMS: &str = r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %s: f32[batch, time, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %b: f32[4] = [0.5, -0.5, 1.0, 0.0]
  %p = RMSNormalization(%x, %w) {epsilon: 0.25}
  %q = SimplifiedLayerNormalization(%x, %w) {epsilon: 0.25}
  %r, %r1, %r2, %r3 = com.microsoft.SkipLayerNormalization(%x, %s, %w, %b, %b) {epsilon: 0.25}
  %t, %t1, %t2, %t3 = com.microsoft.SkipSimplifiedLayerNormalization(%x, %s, %w) {epsilon: 0.25}
  output "p" %p
  output "q" %q
  output "r" %r
  output "sum" %r3
  output "t" %t
}"#;

    #[test]
    fn norms_are_spelled_out_and_the_sum_is_kept() {
        insta::assert_snapshot!(after(NORMS));
    }

    #[test]
    fn the_numbers_stay() {
        check_close(NORMS, &[("x", &[2, 3, 4]), ("s", &[2, 3, 4])], 1e-12);
    }

    #[test]
    fn embeddings_are_gathered_and_added() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %ids: i32[batch, time]
  input %mask: i32[batch, time]
  weight %words: f32[9, 4] = random(1)
  weight %places: f32[5, 4] = random(2)
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %b: f32[4] = [0.5, -0.5, 1.0, 0.0]
  %e, %n = com.microsoft.EmbedLayerNormalization(%ids, _, %words, %places, _, %w, %b, %mask) {epsilon: 0.25}
  output "e" %e
  output "n" %n
}"#
        ));
    }

    #[test]
    fn norms_over_several_axes_stay() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, 2, 4]
  weight %w: f32[2, 4] = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]
  %p = RMSNormalization(%x, %w) {axis: 1}
  output "p" %p
}"#
        ));
    }
}
