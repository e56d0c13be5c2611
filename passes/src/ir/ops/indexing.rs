//! Operators that pick elements by index.

use super::ROW;
use super::layout::each;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, resolve_axis};
use crate::ir::op::{AttrSpec, OpSpec};
use crate::ir::shape::Dim;
use ndarray::{ArrayD, IxDyn};

pub(super) const OPS: &[OpSpec] = &[OpSpec {
    name: "Gather",
    inputs: 2..=2,
    attrs: &[("axis", AttrSpec::Int(0))],
    infer: infer_gather,
    eval: eval_gather,
    ..ROW
}];

fn infer_gather(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some((data, indices)) = ctx.shape(0).zip(ctx.shape(1)) else {
        return Ok(vec![Type::maybe(ctx.dtype(0), None)]);
    };
    let axis = ctx.axis("axis", data.len())?;
    let shape = [&data[..axis], indices, &data[axis + 1..]].concat();
    Ok(vec![Type::maybe(ctx.dtype(0), Some(shape)).with_ints(gather_ints(ctx))])
}

/// Followed integers picked by constant indices.
fn gather_ints(ctx: &InferContext<'_>) -> Option<Vec<Dim>> {
    let data = ctx.ints(0).filter(|_| ctx.shape(0).is_some_and(|s| s.len() == 1))?;
    let pick = |i: &i64| {
        let i = if *i < 0 { i + data.len() as i64 } else { *i };
        data.get(usize::try_from(i).ok()?).cloned()
    };
    ctx.const_ints(1)?.iter().map(pick).collect()
}

fn eval_gather(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (data, indices) = (ctx.input(0)?, ctx.i(1)?);
    let axis = resolve_axis(ctx.int_attr("axis")?, data.shape().len())?;
    Ok(vec![each!(data, a => gather(a, indices, axis)?)])
}

fn gather<T: Clone>(data: &ArrayD<T>, indices: &ArrayD<i64>, axis: usize) -> Result<ArrayD<T>, String> {
    let n = data.shape()[axis];
    let flat = indices.iter().map(|i| resolve_axis(*i, n).map_err(|_| format!("index {i} is outside {n}")));
    let flat: Vec<usize> = flat.collect::<Result<_, _>>()?;
    let shape = [&data.shape()[..axis], indices.shape(), &data.shape()[axis + 1..]].concat();
    let picked = data.select(ndarray::Axis(axis), &flat).as_standard_layout().into_owned();
    picked.into_shape_with_order(IxDyn(&shape)).map_err(|e| e.to_string())
}
