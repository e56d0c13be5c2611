//! `Cast` between floats, and `Identity`.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] = &[Rule { op: "Cast", vjp: cast }, Rule { op: "Identity", vjp: identity }];

fn cast(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let dtype = ctx.patch.dtype(x);
    let grad = ctx.patch.cast(g, dtype);
    ctx.only(0, grad)
}

fn identity(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.loose()?;
    ctx.only(0, g)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradients_of};

    #[test]
    fn gradients_come_back_in_the_type_they_left_in() {
        let text = r#"graph "g" {
  input %x: bf16[2, 3]
  %w = Cast(%x) {to: "f32"}
  %i = Identity(%w)
  %y = Mul(%i, %i)
  %n = Cast(%y) {to: "f16"}
  output "y" %n
}"#;
        gradcheck(text);
        let graph = gradients_of(text);
        let grad = graph.output("grad x").expect("the gradient");
        assert_eq!(graph.value(grad).ty.to_string(), "bf16[2, 3]");
    }

    #[test]
    fn integers_on_the_way_end_the_path() {
        let graph = gradients_of(
            r#"graph "g" {
  input %x: f32[3]
  %n = Cast(%x) {to: "i64"}
  %y = Cast(%n) {to: "f32"}
  output "y" %y
}"#,
        );
        assert_eq!(graph.output("grad x"), None);
    }
}
