//! `Flatten`, `Tile`, `Size` and `Dropout`.

use super::ROW;
use super::layout::each;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, OpSpec};
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, Axis, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "Flatten",
        attrs: &[("axis", AttrSpec::Int(1))],
        infer: infer_flatten,
        eval: eval_flatten,
        ..ROW
    },
    OpSpec { name: "Tile", inputs: 2..=2, infer: infer_tile, eval: eval_tile, ..ROW },
    OpSpec { name: "Size", infer: infer_size, eval: eval_size, ..ROW },
    OpSpec {
        name: "Dropout",
        inputs: 1..=3,
        outputs: 1..=2,
        attrs: &[("seed", AttrSpec::Int(0)), ("ratio", AttrSpec::Float(0.5))],
        infer: infer_dropout,
        eval: eval_dropout,
        ..ROW
    },
];

/// The axis may be the rank itself: then nothing is left for the second dim.
fn flatten_axis(axis: Option<i64>, rank: usize) -> Result<usize, String> {
    let axis = axis.unwrap_or(1);
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    let found = usize::try_from(from_front).ok().filter(|a| *a <= rank);
    found.ok_or_else(|| format!("axis {axis} does not split rank {rank}"))
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::Known(1), |n, d| n.times(d))
}

fn infer_flatten(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else {
        return Ok(vec![Type::maybe(ctx.dtype(0), Some(vec![Dim::Unknown; 2]))]);
    };
    let axis = flatten_axis(ctx.op.int("axis"), shape.len())?;
    let flat = vec![product(&shape[..axis]), product(&shape[axis..])];
    Ok(vec![Type::maybe(ctx.dtype(0), Some(flat))])
}

fn eval_flatten(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let axis = flatten_axis(ctx.op.int("axis"), x.shape().len())?;
    let count = |dims: &[usize]| dims.iter().product::<usize>();
    let dims = IxDyn(&[count(&x.shape()[..axis]), count(&x.shape()[axis..])]);
    let fail = |e: ndarray::ShapeError| e.to_string();
    Ok(vec![each!(x, a => a.as_standard_layout().into_owned().into_shape_with_order(dims).map_err(fail)?)])
}

fn infer_tile(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return Ok(vec![Type::maybe(ctx.dtype(0), None)]) };
    let dims = match ctx.ints(1) {
        Some(repeats) if repeats.len() == shape.len() => {
            shape.iter().zip(repeats).map(|(d, n)| d.times(n)).collect()
        }
        Some(repeats) => return Err(format!("{} repeats for rank {}", repeats.len(), shape.len())),
        None => vec![Dim::Unknown; shape.len()],
    };
    Ok(vec![Type::maybe(ctx.dtype(0), Some(dims))])
}

fn tile<T: Clone>(a: &ArrayD<T>, repeats: &[i64]) -> ArrayD<T> {
    repeats.iter().enumerate().fold(a.clone(), |a, (axis, n)| {
        let len = a.shape()[axis];
        let indices: Vec<usize> = (0..len * usize::try_from(*n).unwrap_or(0)).map(|i| i % len).collect();
        a.select(Axis(axis), &indices)
    })
}

fn eval_tile(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (x, repeats) = (ctx.input(0)?, ctx.ints(1)?);
    if repeats.len() != x.shape().len() {
        return Err(format!("{} repeats for rank {}", repeats.len(), x.shape().len()));
    }
    Ok(vec![each!(x, a => tile(a, &repeats))])
}

fn infer_size(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let ints = ctx.shape(0).map(|shape| vec![product(shape)]);
    Ok(vec![Type::new(DType::I64, Vec::new()).with_ints(ints)])
}

fn eval_size(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let count = ctx.input(0)?.shape().iter().product::<usize>();
    Ok(vec![Array::from_i64(&[], vec![count as i64])?])
}

fn infer_dropout(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let shape = ctx.shape(0).cloned();
    Ok(vec![Type::maybe(ctx.dtype(0), shape.clone()), Type::maybe(Some(DType::Bool), shape)])
}

/// Without training mode everything is kept.
fn eval_dropout(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.has(2) && ctx.input(2)?.as_b()?.iter().any(|training| *training) {
        return Err("dropout is random in training mode".to_owned());
    }
    let x = ctx.input(0)?;
    Ok(vec![x.clone(), Array::B(ArrayD::from_elem(IxDyn(x.shape()), true))])
}
