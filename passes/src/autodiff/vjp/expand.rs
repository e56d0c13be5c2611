//! `Expand`.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] = &[Rule { op: "Expand", vjp: expand }];

fn expand(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.loose()?;
    let grad = ctx.fit(g, 0)?;
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn repeats_are_summed() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 1, 3]
  input %y: f32[2, 1]
  const %ones: i64[4] = [1, 1, 2, 1]
  %more = Expand(%x, %ones)
  %shape = Shape(%x)
  %wide = Expand(%y, %shape)
  %s = ReduceSum(%more) {axes: [0, 2], keepdims: 0}
  output "s" %s
  output "more" %more
}"#,
        );
    }

    #[test]
    fn a_computed_shape() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, time, 3]
  weight %y: f32[3] = random(1)
  %shape = Shape(%x)
  %wide = Expand(%y, %shape)
  output "wide" %wide
}"#,
        );
    }
}
