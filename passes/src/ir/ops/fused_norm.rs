//! Root-mean-square norms, and the norms that ONNX Runtime fuses with a residual or an embedding.

use super::ROW;
use super::elementwise::{broadcast_maybe, zip};
use super::normalize::{layer_norm, rms_norm};
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, resolve_axis};
use crate::ir::op::{AttrSpec, OpSpec};
use crate::ir::shape::{Dim, Shape};
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, Axis, Slice};

const MICROSOFT: &str = "com.microsoft";

const RMS: OpSpec = OpSpec {
    inputs: 2..=2,
    infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
    eval: eval_rms,
    ..ROW
};

const SKIP: OpSpec = OpSpec {
    domain: MICROSOFT,
    outputs: 1..=4,
    attrs: &[("epsilon", AttrSpec::Float(1e-12))],
    infer: infer_skip,
    ..ROW
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "RMSNormalization",
        attrs: &[
            ("axis", AttrSpec::Int(-1)),
            ("epsilon", AttrSpec::Float(1e-5)),
            ("stash_type", AttrSpec::Int(1)),
        ],
        ..RMS
    },
    // ONNX Runtime writes it in the domain of ONNX, which does not define it.
    OpSpec {
        name: "SimplifiedLayerNormalization",
        outputs: 1..=2,
        attrs: &[
            ("axis", AttrSpec::Int(-1)),
            ("epsilon", AttrSpec::Float(1e-5)),
            ("stash_type", AttrSpec::Int(1)),
        ],
        ..RMS
    },
    OpSpec { name: "SkipLayerNormalization", inputs: 3..=5, eval: eval_skip, ..SKIP },
    OpSpec { name: "SkipSimplifiedLayerNormalization", inputs: 3..=4, eval: eval_skip_rms, ..SKIP },
    OpSpec {
        domain: MICROSOFT,
        name: "EmbedLayerNormalization",
        inputs: 7..=9,
        outputs: 1..=3,
        attrs: &[("epsilon", AttrSpec::Float(1e-12)), ("mask_index_type", AttrSpec::Int(0))],
        infer: infer_embed,
        eval: eval_embed,
    },
];

fn epsilon(ctx: &EvalContext<'_>) -> f64 {
    f64::from(ctx.op.float("epsilon").unwrap_or_default())
}

fn eval_rms(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    if ctx.outputs > 1 {
        return Err("only the normalised values are known".to_owned());
    }
    let first = resolve_axis(ctx.int_attr("axis")?, x.ndim())?;
    Ok(vec![Array::F(rms_norm(x, first, ctx.f(1)?, epsilon(ctx))?)])
}

/// Mean and inverse deviation (outputs 1 and 2) are only ever named, never given.
fn infer_skip(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let whole = Type::maybe(ctx.dtype(0), ctx.shape(0).cloned());
    Ok(vec![whole.clone(), Type::default(), Type::default(), whole])
}

/// Input, skip and bias, added.
fn skip_sum(ctx: &EvalContext<'_>, bias: usize) -> Result<ArrayD<f64>, String> {
    let sum = zip(ctx.f(0)?, ctx.f(1)?, |x, s| x + s)?;
    if ctx.has(bias) { zip(&sum, ctx.f(bias)?, |x, b| x + b) } else { Ok(sum) }
}

fn with_sum(out: ArrayD<f64>, sum: ArrayD<f64>) -> Vec<Array> {
    let nothing = || Array::F(ArrayD::zeros(ndarray::IxDyn(&[0])));
    vec![Array::F(out), nothing(), nothing(), Array::F(sum)]
}

fn eval_skip(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let sum = skip_sum(ctx, 4)?;
    let beta = if ctx.has(3) { Some(ctx.f(3)?) } else { None };
    Ok(with_sum(layer_norm(&sum, ctx.f(2)?, beta, epsilon(ctx))?, sum))
}

fn eval_skip_rms(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let sum = skip_sum(ctx, 3)?;
    let out = rms_norm(&sum, sum.ndim().saturating_sub(1), ctx.f(2)?, epsilon(ctx))?;
    Ok(with_sum(out, sum))
}

fn infer_embed(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let ids = broadcast_maybe(ctx.shape(0), ctx.shape(0))?;
    let hidden = ctx.shape(2).and_then(|s| s.get(1).cloned()).unwrap_or(Dim::Unknown);
    let batch: Option<Shape> = ids.as_ref().map(|s| s[..s.len().min(1)].to_vec());
    let shape = ids.map(|mut s| {
        s.push(hidden);
        s
    });
    let embedded = Type::maybe(ctx.dtype(2), shape);
    Ok(vec![embedded.clone(), Type::maybe(Some(DType::I32), batch), embedded])
}

fn rows(table: &ArrayD<f64>, ids: &ArrayD<i64>) -> Result<ArrayD<f64>, String> {
    super::indexing::gather(table, ids, 0)
}

fn eval_embed(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let ids = ctx.i(0)?;
    let &[batch, time] = ids.shape() else { return Err(format!("the ids are {:?}", ids.shape())) };
    let positions = match ctx.has(8) {
        true => rows(ctx.f(3)?, ctx.i(8)?)?,
        false if ctx.f(3)?.shape()[0] < time => return Err("there are too few positions".to_owned()),
        false => ctx.f(3)?.slice_axis(Axis(0), Slice::from(..time)).to_owned(),
    };
    let mut sum = zip(&rows(ctx.f(2)?, ids)?, &positions, |x, p| x + p)?;
    if ctx.has(1) && ctx.has(4) {
        sum = zip(&sum, &rows(ctx.f(4)?, ctx.i(1)?)?, |x, s| x + s)?;
    }
    let lengths = match ctx.has(7) {
        true => ctx.i(7)?.map_axis(Axis(1), |row| row.iter().filter(|m| **m == 1).count() as i64),
        false => ArrayD::zeros(ndarray::IxDyn(&[batch])),
    };
    let out = layer_norm(&sum, ctx.f(5)?, Some(ctx.f(6)?), epsilon(ctx))?;
    Ok(vec![Array::F(out), Array::I(lengths), Array::F(sum)])
}
