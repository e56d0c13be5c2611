//! `ReduceMax` and `ReduceMin`: the gradient is shared evenly by all elements that are the extreme.

use super::reduce::{kept_axes, unreduced};
use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] =
    &[Rule { op: "ReduceMax", vjp: extreme }, Rule { op: "ReduceMin", vjp: extreme }];

fn extreme(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x, y) = (ctx.grad()?, ctx.input(0)?, ctx.output());
    let (g, y) = (unreduced(ctx, g)?, unreduced(ctx, y)?);
    let dtype = ctx.patch.dtype(x);
    let axes = kept_axes(ctx)?;
    let same = ctx.patch.equal(x, y);
    let marks = ctx.patch.cast(same, dtype);
    let count = ctx.patch.reduce("ReduceSum", marks, &axes, true);
    let share = ctx.patch.div(g, count);
    let zero = ctx.patch.scalar_like(x, 0.0);
    let grad = ctx.patch.select(same, share, zero);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradients_at};

    #[test]
    fn extremes_of_one_and_of_several_axes() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 3, 4]
  %a = ReduceMax(%x) {axes: [-1]}
  %b = ReduceMax(%x) {axes: [0, -1], keepdims: 0}
  %c = ReduceMin(%x) {keepdims: 0}
  output "a" %a
  output "b" %b
  output "c" %c
}"#,
        );
    }

    #[test]
    fn ties_share() {
        let grads = gradients_at(
            r#"graph "g" {
  input %x: f32[4]
  %m = ReduceMax(%x) {keepdims: 0}
  output "m" %m
}"#,
            &[("x", &[3.0, 1.0, 3.0, 2.0])],
        );
        assert_eq!(grads["x"], [0.5, 0.0, 0.5, 0.0]);
    }
}
