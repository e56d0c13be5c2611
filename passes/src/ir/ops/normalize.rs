//! Softmax and layer normalisation.

use super::ROW;
use super::elementwise::zip;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{Type, resolve_axis};
use crate::ir::op::{AttrSpec, OpSpec};
use ndarray::{ArrayD, Axis};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "Softmax",
        attrs: &[("axis", AttrSpec::Int(-1))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_softmax,
        ..ROW
    },
    OpSpec {
        name: "LayerNormalization",
        inputs: 2..=3,
        attrs: &[
            ("axis", AttrSpec::Int(-1)),
            ("epsilon", AttrSpec::Float(1e-5)),
            ("stash_type", AttrSpec::Int(1)),
        ],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_layer_norm,
        ..ROW
    },
];

fn eval_softmax(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let axis = Axis(resolve_axis(ctx.int_attr("axis")?, x.ndim())?);
    let mut out = x.clone();
    for mut lane in out.lanes_mut(axis) {
        let max = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        lane.mapv_inplace(|x| (x - max).exp());
        let sum = lane.sum();
        lane.mapv_inplace(|x| x / sum);
    }
    Ok(vec![Array::F(out)])
}

fn eval_layer_norm(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let first = resolve_axis(ctx.int_attr("axis")?, x.ndim())?;
    if first + 1 != x.ndim() {
        return Err("only the last axis is normalised here".to_owned());
    }
    let epsilon = f64::from(ctx.op.float("epsilon").unwrap_or(1e-5));
    let mut out: ArrayD<f64> = x.clone();
    for mut lane in out.lanes_mut(Axis(first)) {
        let n = lane.len() as f64;
        let mean = lane.sum() / n;
        let variance = lane.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let scale = (variance + epsilon).sqrt().recip();
        lane.mapv_inplace(|x| (x - mean) * scale);
    }
    out = zip(&out, ctx.f(1)?, |x, w| x * w)?;
    if ctx.has(2) {
        out = zip(&out, ctx.f(2)?, |x, b| x + b)?;
    }
    Ok(vec![Array::F(out)])
}
