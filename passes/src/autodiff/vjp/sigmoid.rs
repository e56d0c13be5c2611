//! `Erf`, `Sigmoid`, `Softplus`, `Tanh`.

use super::{Grads, Rule, VjpContext};
use std::f64::consts::FRAC_2_SQRT_PI;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Erf", vjp: erf },
    Rule { op: "Sigmoid", vjp: sigmoid },
    Rule { op: "Softplus", vjp: softplus },
    Rule { op: "Tanh", vjp: tanh },
];

/// 2/√π exp(-x²)
fn erf(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let p = &mut *ctx.patch;
    let square = p.mul(x, x);
    let exponent = p.neg(square);
    let bell = p.exp(exponent);
    let product = p.mul(g, bell);
    let grad = p.mul_scalar(product, FRAC_2_SQRT_PI);
    ctx.only(0, grad)
}

/// y (1 - y)
fn sigmoid(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let product = ctx.patch.mul(g, y);
    let squared = ctx.patch.mul(product, y);
    let grad = ctx.patch.sub(product, squared);
    ctx.only(0, grad)
}

fn softplus(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let slope = ctx.patch.sigmoid(x);
    let grad = ctx.patch.mul(g, slope);
    ctx.only(0, grad)
}

/// 1 - y²
fn tanh(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let product = ctx.patch.mul(g, y);
    let squared = ctx.patch.mul(product, y);
    let grad = ctx.patch.sub(g, squared);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn every_curve() {
        for op in ["Erf", "Sigmoid", "Softplus", "Tanh"] {
            gradcheck(&format!(
                r#"graph "g" {{
  input %x: f32[2, 3]
  %y = {op}(%x)
  %m = ReduceMean(%y) {{axes: [0]}}
  output "y" %y
  output "m" %m
}}"#
            ));
        }
    }
}
