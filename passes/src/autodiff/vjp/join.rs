//! `Concat` and `Split`, each the other's gradient.

use super::{Grads, Rule, VjpContext};
use crate::autodiff::number::Number;
use crate::ir::op::Op;

pub(super) const RULES: &[Rule] = &[Rule { op: "Concat", vjp: concat }, Rule { op: "Split", vjp: split }];

fn concat(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.grad()?;
    let axis = ctx.axis(ctx.shape(ctx.output())?.len())?;
    let count = ctx.node.inputs.len();
    let wanted: Vec<usize> = (0..count).filter(|slot| ctx.wants(*slot)).collect();
    if let [only] = wanted.as_slice() {
        return one_part(ctx, *only, axis);
    }
    let mut sizes = Vec::with_capacity(count);
    for slot in 0..count {
        let part = ctx.input(slot)?;
        sizes.push(ctx.dim(part, axis));
    }
    let sizes = ctx.vector(&sizes);
    let op = Op::new("Split").with("axis", axis as i64);
    let parts = ctx.patch.node_outputs(op, &[Some(g), Some(sizes)], count);
    Ok(parts.into_iter().enumerate().map(|(slot, part)| wanted.contains(&slot).then_some(part)).collect())
}

fn one_part(ctx: &mut VjpContext<'_, '_>, slot: usize, axis: usize) -> Grads {
    let g = ctx.grad()?;
    let mut start = Number::Known(0);
    for before in 0..slot {
        let part = ctx.input(before)?;
        let dim = ctx.dim(part, axis);
        start = ctx.plus(start, dim);
    }
    let end = match slot + 1 == ctx.node.inputs.len() {
        true => Number::Known(i64::MAX),
        false => {
            let part = ctx.input(slot)?;
            let dim = ctx.dim(part, axis);
            ctx.plus(start, dim)
        }
    };
    let (start, end) = (ctx.vector(&[start]), ctx.vector(&[end]));
    let grad = ctx.patch.slice_to(g, axis as i64, start, end);
    ctx.only(slot, grad)
}

fn split(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let axis = ctx.axis(ctx.shape(ctx.input(0)?)?.len())?;
    let mut parts = Vec::with_capacity(ctx.node.outputs.len());
    for (slot, output) in ctx.node.outputs.iter().enumerate() {
        parts.push(match ctx.grad_of(slot) {
            Some(part) => part,
            None => ctx.zeros_like(*output),
        });
    }
    let grad = ctx.patch.concat(&parts, axis as i64);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn parts_of_known_and_of_named_sizes() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 2, 3]
  input %y: f32[batch, 4, 3]
  input %z: f32[batch, time, 3]
  const %c: f32[1, 2, 3] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
  %shape = Shape(%x)
  %d = Expand(%c, %shape)
  %a = Concat(%x, %y) {axis: 1}
  %b = Concat(%x, %z, %d, %x) {axis: -2}
  %first = Concat(%x, %d) {axis: 1}
  %last = Concat(%d, %z) {axis: 1}
  %middle = Concat(%d, %z, %d) {axis: 1}
  output "a" %a
  output "b" %b
  output "first" %first
  output "last" %last
  output "middle" %middle
}"#,
        );
    }

    #[test]
    fn parts_that_are_read_and_parts_that_are_not() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 5, 3]
  const %sizes: i64[3] = [1, 2, 2]
  %a, %b, %c = Split(%x, %sizes) {axis: 1}
  %d, %e = Split(%x) {axis: -1}
  %n = Mul(%b, %c)
  %m = ReduceMean(%n) {keepdims: 0}
  output "m" %m
  output "d" %d
  output "e" %e
}"#,
        );
    }
}
