//! `Gelu` in both forms, `QuickGelu` and `Swish`.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use std::f64::consts::PI;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Gelu", vjp: gelu },
    Rule { op: "com.microsoft.Gelu", vjp: gelu },
    Rule { op: "com.microsoft.QuickGelu", vjp: swish },
    Rule { op: "Swish", vjp: swish },
];

fn gelu(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let slope = match ctx.node.op.str("approximate") {
        Some("tanh") => tanh_slope(ctx, x),
        _ => exact_slope(ctx, x),
    };
    let grad = ctx.patch.mul(g, slope);
    ctx.only(0, grad)
}

/// Φ(x) + x φ(x)
fn exact_slope(ctx: &mut VjpContext<'_, '_>, x: ValueId) -> ValueId {
    let p = &mut *ctx.patch;
    let scaled = p.mul_scalar(x, 0.5f64.sqrt());
    let erf = p.erf(scaled);
    let half = p.mul_scalar(erf, 0.5);
    let below = p.add_scalar(half, 0.5);
    let square = p.mul(scaled, scaled);
    let exponent = p.neg(square);
    let bell = p.exp(exponent);
    let weighted = p.mul(x, bell);
    let density = p.mul_scalar(weighted, (2.0 * PI).sqrt().recip());
    p.add(below, density)
}

/// With t = tanh(u), u = √(2/π) (x + 0.044715 x³): (1 + t) / 2 + x (1 - t²) u' / 2
fn tanh_slope(ctx: &mut VjpContext<'_, '_>, x: ValueId) -> ValueId {
    const CUBIC: f64 = 0.044_715;
    let root = (2.0 / PI).sqrt();
    let p = &mut *ctx.patch;
    let square = p.mul(x, x);
    let inner = p.mul_scalar(square, root * CUBIC);
    let inner = p.add_scalar(inner, root);
    let u = p.mul(x, inner);
    let t = p.tanh(u);
    let steep = p.mul_scalar(square, 1.5 * root * CUBIC);
    let steep = p.add_scalar(steep, 0.5 * root);
    let steep = p.mul(x, steep);
    let squared = p.mul(t, t);
    let flat = p.mul(steep, squared);
    let rise = p.sub(steep, flat);
    let half = p.mul_scalar(t, 0.5);
    let half = p.add_scalar(half, 0.5);
    p.add(half, rise)
}

/// With s = sigmoid(α x): s + α x s (1 - s)
fn swish(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let alpha = f64::from(ctx.node.op.float("alpha").unwrap_or(1.0));
    let p = &mut *ctx.patch;
    let scaled = p.mul_scalar(x, alpha);
    let s = p.sigmoid(scaled);
    let product = p.mul(scaled, s);
    let squared = p.mul(product, s);
    let rise = p.sub(product, squared);
    let slope = p.add(s, rise);
    let grad = p.mul(g, slope);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn every_form() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 4]
  %a = Gelu(%x)
  %b = Gelu(%x) {approximate: "tanh"}
  %c = com.microsoft.Gelu(%x)
  %d = com.microsoft.QuickGelu(%x)
  %e = com.microsoft.QuickGelu(%x) {alpha: 0.5}
  %f = Swish(%x)
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
  output "e" %e
  output "f" %f
}"#,
        );
    }
}
