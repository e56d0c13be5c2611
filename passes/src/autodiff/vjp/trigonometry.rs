//! `Cos` and `Sin`.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] = &[Rule { op: "Cos", vjp: cos }, Rule { op: "Sin", vjp: sin }];

fn cos(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let slope = ctx.patch.sin(x);
    let grad = ctx.patch.mul(g, slope);
    let grad = ctx.patch.neg(grad);
    ctx.only(0, grad)
}

fn sin(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let slope = ctx.patch.cos(x);
    let grad = ctx.patch.mul(g, slope);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn both() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 3]
  %c = Cos(%x)
  %s = Sin(%x)
  output "c" %c
  output "s" %s
}"#,
        );
    }
}
