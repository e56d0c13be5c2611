//! `LayerNormalization` and `RMSNormalization`, over the axes from `axis` on. What they normalise by is
//! computed again, in f32, rather than kept.

use super::{AutodiffError, Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use dijiang_format::dtype::DType;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "LayerNormalization", vjp: |ctx| norm(ctx, true) },
    Rule { op: "RMSNormalization", vjp: |ctx| norm(ctx, false) },
    Rule { op: "SimplifiedLayerNormalization", vjp: |ctx| norm(ctx, false) },
];

/// x̂ and what the input was divided by.
struct Normal {
    value: ValueId,
    root: ValueId,
}

fn wide(ctx: &mut VjpContext<'_, '_>, x: ValueId) -> ValueId {
    match ctx.patch.dtype(x) {
        DType::F16 | DType::BF16 => ctx.patch.cast(x, DType::F32),
        _ => x,
    }
}

fn normal(ctx: &mut VjpContext<'_, '_>, axes: &[i64], centred: bool) -> Result<Normal, AutodiffError> {
    let x = ctx.input(0)?;
    let epsilon = f64::from(ctx.node.op.float("epsilon").unwrap_or(1e-5));
    let mut x = wide(ctx, x);
    let p = &mut *ctx.patch;
    if centred {
        let mean = p.reduce("ReduceMean", x, axes, true);
        x = p.sub(x, mean);
    }
    let square = p.mul(x, x);
    let variance = p.reduce("ReduceMean", square, axes, true);
    let shifted = p.add_scalar(variance, epsilon);
    let root = p.sqrt(shifted);
    Ok(Normal { value: p.div(x, root), root })
}

/// With h = g w: dx = (h - mean(h) - x̂ mean(h x̂)) / root, the first mean only where x was centred.
fn norm(ctx: &mut VjpContext<'_, '_>, centred: bool) -> Grads {
    let (g, x, scale) = (ctx.grad()?, ctx.input(0)?, ctx.input(1)?);
    let rank = ctx.shape(x)?.len();
    let axes: Vec<i64> = (ctx.axis(rank)? as i64..rank as i64).collect();
    let g = wide(ctx, g);
    let mut grads = vec![None; ctx.node.inputs.len()];
    if ctx.wants(0) || ctx.wants(1) {
        let normal = normal(ctx, &axes, centred)?;
        if ctx.wants(0) {
            let scale = wide(ctx, scale);
            let grad = of_input(ctx, [g, scale], &normal, &axes, centred);
            let dtype = ctx.patch.dtype(x);
            grads[0] = Some(ctx.patch.cast(grad, dtype));
        }
        if ctx.wants(1) {
            let product = ctx.patch.mul(g, normal.value);
            grads[1] = Some(narrow_sum(ctx, product, 1)?);
        }
    }
    if ctx.wants(2) {
        grads[2] = Some(narrow_sum(ctx, g, 2)?);
    }
    Ok(grads)
}

fn narrow_sum(ctx: &mut VjpContext<'_, '_>, grad: ValueId, slot: usize) -> Result<ValueId, AutodiffError> {
    let sum = ctx.fit(grad, slot)?;
    let parameter = ctx.input(slot)?;
    let dtype = ctx.patch.dtype(parameter);
    Ok(ctx.patch.cast(sum, dtype))
}

fn of_input(
    ctx: &mut VjpContext<'_, '_>,
    [g, scale]: [ValueId; 2],
    normal: &Normal,
    axes: &[i64],
    centred: bool,
) -> ValueId {
    let p = &mut *ctx.patch;
    let h = p.mul(g, scale);
    let product = p.mul(h, normal.value);
    let along = p.reduce("ReduceMean", product, axes, true);
    let along = p.mul(normal.value, along);
    let mut rest = p.sub(h, along);
    if centred {
        let mean = p.reduce("ReduceMean", h, axes, true);
        rest = p.sub(rest, mean);
    }
    p.div(rest, normal.root)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradients_of};

    #[test]
    fn with_and_without_a_bias() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: f32[4] = random(1)
  weight %b: f32[4] = random(2)
  %y = LayerNormalization(%x, %w, %b) {epsilon: 0.125}
  %z = LayerNormalization(%x, %w) {axis: 2}
  output "y" %y
  output "z" %z
}"#,
        );
    }

    #[test]
    fn root_mean_squares() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 3, 4]
  weight %w: f32[4] = random(1)
  weight %v: f32[3, 4] = random(2)
  %y = RMSNormalization(%x, %w) {epsilon: 0.125}
  %z = SimplifiedLayerNormalization(%x, %v) {axis: 1}
  output "y" %y
  output "z" %z
}"#,
        );
    }

    #[test]
    fn narrow_types_are_computed_in_f32() {
        let text = r#"graph "g" {
  input %x: bf16[2, 4]
  weight %w: bf16[4] = random(1)
  %y = LayerNormalization(%x, %w)
  output "y" %y
}"#;
        gradcheck(text);
        let graph = gradients_of(text);
        for name in ["grad x", "grad w"] {
            let grad = graph.output(name).expect("the gradient");
            assert_eq!(graph.value(grad).ty.dtype, Some(dijiang_format::dtype::DType::BF16));
        }
    }
}
