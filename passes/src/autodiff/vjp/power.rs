//! `Exp`, `Log`, `Pow`, `Reciprocal`, `Sqrt`.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Exp", vjp: exp },
    Rule { op: "Log", vjp: log },
    Rule { op: "Pow", vjp: pow },
    Rule { op: "Reciprocal", vjp: reciprocal },
    Rule { op: "Sqrt", vjp: sqrt },
];

fn exp(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let grad = ctx.patch.mul(g, y);
    ctx.only(0, grad)
}

fn log(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let grad = ctx.patch.div(g, x);
    ctx.only(0, grad)
}

/// -y²
fn reciprocal(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let product = ctx.patch.mul(g, y);
    let product = ctx.patch.mul(product, y);
    let grad = ctx.patch.neg(product);
    ctx.only(0, grad)
}

/// 1 / 2y
fn sqrt(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let quotient = ctx.patch.div(g, y);
    let grad = ctx.patch.mul_scalar(quotient, 0.5);
    ctx.only(0, grad)
}

/// n xⁿ⁻¹, for an exponent that is not trained.
fn pow(ctx: &mut VjpContext<'_, '_>) -> Grads {
    if ctx.wants(1) {
        return Err(ctx.error("the exponent must not depend on what is trained"));
    }
    let (g, x, exponent) = (ctx.loose()?, ctx.input(0)?, ctx.input(1)?);
    let known = ctx.patch.value(exponent).as_const().and_then(crate::ir::tensor::Tensor::single);
    let slope = match known {
        Some(n) => known_slope(ctx, x, n),
        None => {
            let less = ctx.patch.add_scalar(exponent, -1.0);
            let power = ctx.patch.pow(x, less);
            ctx.patch.mul(power, exponent)
        }
    };
    let product = ctx.patch.mul(g, slope);
    let grad = ctx.fit(product, 0)?;
    ctx.only(0, grad)
}

fn known_slope(ctx: &mut VjpContext<'_, '_>, x: ValueId, n: f64) -> ValueId {
    let power = match n {
        2.0 => x,
        3.0 => ctx.patch.mul(x, x),
        _ => {
            let less = ctx.patch.scalar_like(x, n - 1.0);
            ctx.patch.pow(x, less)
        }
    };
    ctx.patch.mul_scalar(power, n)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradient_error};

    #[test]
    fn every_power() {
        for op in ["Exp", "Log", "Reciprocal", "Sqrt"] {
            gradcheck(&format!(
                r#"graph "g" {{
  input %positive: f32[2, 3]
  %y = {op}(%positive)
  %m = ReduceMean(%y) {{axes: [0]}}
  output "y" %y
  output "m" %m
}}"#
            ));
        }
    }

    #[test]
    fn constant_exponents() {
        gradcheck(
            r#"graph "g" {
  input %positive: f32[2, 3]
  input %x: f32[2, 3]
  const %two: f32[] = [2.0]
  const %three: f32[1] = [3.0]
  const %half: f32[1, 1, 1] = [-0.5]
  const %each: f32[4, 1, 3] = [1.0, 2.0, 0.0, 1.5, -1.0, 4.0, 1.0, 2.0, 3.0, 0.5, 0.25, 2.5]
  %a = Pow(%x, %two)
  %b = Pow(%x, %three)
  %c = Pow(%positive, %half)
  %d = Pow(%positive, %each)
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
}"#,
        );
    }

    #[test]
    fn a_trained_exponent_is_refused() {
        insta::assert_snapshot!(gradient_error(
            r#"graph "g" {
  input %x: f32[2]
  input %n: f32[]
  %y = Pow(%x, %n) "power"
  %s = ReduceSum(%y) {keepdims: 0}
  output "s" %s
}"#
        ));
    }
}
