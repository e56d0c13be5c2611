//! Reductions and scans along axes.

use super::ROW;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, resolve_axis};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::{Dim, Shape};
use ndarray::{ArrayD, Axis};

pub(super) const OPS: &[OpSpec] = &[
    reduction("ReduceSum", |c| reduce(c, |row| row.iter().sum())),
    reduction("ReduceMean", |c| reduce(c, |row| row.iter().sum::<f64>() / row.len() as f64)),
    reduction("ReduceMax", |c| reduce(c, |row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max))),
    reduction("ReduceMin", |c| reduce(c, |row| row.iter().copied().fold(f64::INFINITY, f64::min))),
    reduction("ReduceProd", |c| reduce(c, |row| row.iter().product())),
    reduction("ReduceL1", |c| reduce(c, |row| row.iter().map(|x| x.abs()).sum())),
    reduction("ReduceL2", |c| reduce(c, |row| row.iter().map(|x| x * x).sum::<f64>().sqrt())),
    reduction("ReduceLogSumExp", |c| reduce(c, log_sum_exp)),
    reduction("ReduceSumSquare", squares_then_sum),
    OpSpec {
        name: "CumSum",
        inputs: 2..=2,
        attrs: &[("exclusive", AttrSpec::Int(0)), ("reverse", AttrSpec::Int(0))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_cumsum,
        ..ROW
    },
];

const fn reduction(name: &'static str, eval: fn(&EvalContext<'_>) -> Result<Vec<Array>, String>) -> OpSpec {
    OpSpec {
        name,
        attrs: &[("axes", AttrSpec::Ints), ("keepdims", AttrSpec::Int(1))],
        infer: infer_reduction,
        eval,
        ..ROW
    }
}

/// The reduced axes, all where none are named, last first.
fn axes(op: &Op, rank: usize) -> Result<Vec<usize>, String> {
    let mut axes: Vec<usize> = match op.ints("axes") {
        Some(axes) => axes.iter().map(|a| resolve_axis(*a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    axes.sort_unstable_by(|a, b| b.cmp(a));
    axes.dedup();
    Ok(axes)
}

fn infer_reduction(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return Ok(vec![Type::maybe(ctx.dtype(0), None)]) };
    let mut shape: Shape = shape.clone();
    for axis in axes(ctx.op, shape.len())? {
        if ctx.op.int("keepdims") == Some(1) {
            shape[axis] = Dim::Known(1);
        } else {
            shape.remove(axis);
        }
    }
    Ok(vec![Type::maybe(ctx.dtype(0), Some(shape))])
}

fn reduce(ctx: &EvalContext<'_>, f: fn(&[f64]) -> f64) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let mut out: ArrayD<f64> = match x {
        Array::F(a) => a.clone(),
        Array::I(a) => a.mapv(|x| x as f64),
        Array::B(_) => return Err("booleans do not reduce".to_owned()),
    };
    // A mean of means over equal counts is the mean; sums, products, norms, extremes and logarithms of
    // sums of exponentials nest as well.
    for axis in axes(ctx.op, out.ndim())? {
        out = out.map_axis(Axis(axis), |row| f(&row.to_vec()));
        if ctx.op.int("keepdims") == Some(1) {
            out = out.insert_axis(Axis(axis));
        }
    }
    Ok(vec![match x {
        Array::I(_) => Array::I(out.mapv(|x| x as i64)),
        _ => Array::F(out),
    }])
}

fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() {
        return max;
    }
    row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max
}

/// Squares are taken once, before the first axis is summed.
fn squares_then_sum(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let squared = match ctx.input(0)? {
        Array::F(a) => Array::F(a.mapv(|x| x * x)),
        Array::I(a) => Array::I(a.mapv(|x| x * x)),
        Array::B(_) => return Err("booleans do not reduce".to_owned()),
    };
    reduce(&EvalContext { op: ctx.op, inputs: &[Some(&squared)], outputs: 1, dtype: ctx.dtype }, |row| {
        row.iter().sum()
    })
}

fn eval_cumsum(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let axis = ctx.ints(1)?.first().copied().ok_or("the axis is empty")?;
    let flag = |name: &str| ctx.op.int(name) == Some(1);
    let (exclusive, reverse) = (flag("exclusive"), flag("reverse"));
    Ok(vec![match ctx.input(0)? {
        Array::F(a) => Array::F(cumsum(a, axis, exclusive, reverse)?),
        Array::I(a) => Array::I(cumsum(a, axis, exclusive, reverse)?),
        Array::B(_) => return Err("booleans have no sum".to_owned()),
    }])
}

fn cumsum<T>(a: &ArrayD<T>, axis: i64, exclusive: bool, reverse: bool) -> Result<ArrayD<T>, String>
where
    T: Copy + Default + std::ops::Add<Output = T>,
{
    let axis = Axis(resolve_axis(axis, a.ndim())?);
    let mut out = a.clone();
    for mut lane in out.lanes_mut(axis) {
        let n = lane.len();
        let mut sum = T::default();
        for step in 0..n {
            let i = if reverse { n - 1 - step } else { step };
            let x = lane[i];
            lane[i] = if exclusive { sum } else { sum + x };
            sum = sum + x;
        }
    }
    Ok(out)
}
