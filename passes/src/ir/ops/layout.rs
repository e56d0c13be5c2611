//! Operators that move elements without changing them.

use super::ROW;
use super::elementwise::{broadcast_maybe, eval_shape, same_dtype};
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, is_open_end, resolve_axis};
use crate::ir::op::{Attr, AttrSpec, OpSpec};
use crate::ir::shape::{Dim, Shape, show};
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, Axis, IxDyn, Slice};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "Transpose",
        attrs: &[("perm", AttrSpec::RequiredInts)],
        infer: infer_transpose,
        eval: eval_transpose,
        ..ROW
    },
    OpSpec {
        name: "Reshape",
        inputs: 2..=2,
        attrs: &[("allowzero", AttrSpec::Int(0))],
        infer: infer_reshape,
        eval: eval_reshape,
        ..ROW
    },
    OpSpec { name: "Expand", inputs: 2..=2, infer: infer_expand, eval: eval_expand, ..ROW },
    OpSpec {
        name: "Concat",
        inputs: 1..=1024,
        attrs: &[("axis", AttrSpec::RequiredInt)],
        infer: infer_concat,
        eval: eval_concat,
        ..ROW
    },
    OpSpec {
        name: "Split",
        inputs: 1..=2,
        outputs: 1..=1024,
        attrs: &[("axis", AttrSpec::Int(0)), ("num_outputs", AttrSpec::Int(0))],
        infer: infer_split,
        eval: eval_split,
        ..ROW
    },
    OpSpec { name: "Slice", inputs: 3..=5, infer: infer_slice, eval: eval_slice, ..ROW },
    OpSpec {
        name: "Squeeze",
        attrs: &[("axes", AttrSpec::RequiredInts)],
        infer: infer_squeeze,
        eval: eval_squeeze,
        ..ROW
    },
    OpSpec {
        name: "Unsqueeze",
        attrs: &[("axes", AttrSpec::RequiredInts)],
        infer: infer_unsqueeze,
        eval: eval_unsqueeze,
        ..ROW
    },
    OpSpec {
        name: "Shape",
        attrs: &[("start", AttrSpec::Int(0)), ("end", AttrSpec::Int(i64::MAX))],
        infer: infer_shape,
        eval: eval_shape_of,
        ..ROW
    },
    OpSpec {
        name: "Pad",
        inputs: 2..=3,
        attrs: &[("mode", AttrSpec::Str("constant"))],
        infer: infer_pad,
        eval: eval_pad,
        ..ROW
    },
    OpSpec {
        name: "Trilu",
        inputs: 1..=2,
        attrs: &[("upper", AttrSpec::Int(1))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_trilu,
        ..ROW
    },
    OpSpec { name: "Range", inputs: 3..=3, infer: infer_range, eval: eval_range, ..ROW },
    OpSpec {
        name: "ConstantOfShape",
        attrs: &[("value", AttrSpec::Tensor)],
        infer: infer_constant_of_shape,
        eval: eval_constant_of_shape,
        ..ROW
    },
];

/// Highest rank that is believed of a computed shape.
const MAX_RANK: u64 = 16;

/// Runs generic code on an array of whatever kind.
macro_rules! each {
    ($array:expr, $a:ident => $body:expr) => {
        match $array {
            Array::F($a) => Array::F($body),
            Array::I($a) => Array::I($body),
            Array::B($a) => Array::B($body),
        }
    };
}
pub(super) use each;

fn one(ty: Type) -> Result<Vec<Type>, String> {
    Ok(vec![ty])
}

fn perm(op: &crate::ir::op::Op, rank: usize) -> Result<Vec<usize>, String> {
    let perm = op.ints("perm").ok_or("attribute `perm` is missing")?;
    let mut seen = vec![false; rank];
    let axes: Vec<usize> = perm.iter().map(|a| resolve_axis(*a, rank)).collect::<Result<_, _>>()?;
    axes.iter().for_each(|a| seen[*a] = true);
    if axes.len() != rank || !seen.iter().all(|s| *s) {
        return Err(format!("perm {perm:?} does not permute rank {rank}"));
    }
    Ok(axes)
}

fn infer_transpose(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return one(Type::maybe(ctx.dtype(0), None)) };
    let axes = perm(ctx.op, shape.len())?;
    let shape = axes.iter().map(|a| shape[*a].clone()).collect();
    one(Type::maybe(ctx.dtype(0), Some(shape)))
}

fn eval_transpose(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let axes = perm(ctx.op, x.shape().len())?;
    Ok(vec![each!(x, a => a.clone().permuted_axes(IxDyn(&axes)).as_standard_layout().into_owned())])
}

fn infer_reshape(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let keep_zero = ctx.op.int("allowzero") == Some(1);
    let consts = ctx.const_ints(1);
    let target: Option<Vec<Option<i64>>> = match (&consts, ctx.ints(1)) {
        (Some(c), _) => Some(c.iter().copied().map(Some).collect()),
        (None, Some(d)) => Some(d.iter().map(|d| d.known().map(|n| n as i64)).collect()),
        (None, None) => None,
    };
    let Some(target) = target else {
        let rank = ctx.shape(1).and_then(|s| s.first()?.known());
        let shape = rank.filter(|r| *r <= MAX_RANK).map(|r| vec![Dim::Unknown; r as usize]);
        return one(Type::maybe(ctx.dtype(0), shape));
    };
    let symbolic = ctx.ints(1);
    let from = ctx.shape(0);
    let mut shape: Shape = Vec::with_capacity(target.len());
    for (i, t) in target.iter().enumerate() {
        shape.push(match t {
            Some(0) if !keep_zero => match from {
                Some(s) => s.get(i).cloned().ok_or_else(|| format!("dim {i} is copied from {}", show(s)))?,
                None => Dim::Unknown,
            },
            Some(-1) => Dim::Unknown,
            Some(n) => Dim::Known(u64::try_from(*n).map_err(|_| format!("dim {i} is {n}"))?),
            None => symbolic.map_or(Dim::Unknown, |s| s[i].clone()),
        });
    }
    if let Some(free) = target.iter().position(|t| *t == Some(-1)) {
        if target.iter().filter(|t| **t == Some(-1)).count() > 1 {
            return Err("more than one dim is -1".to_owned());
        }
        if let Some(from) = from {
            shape[free] = free_dim(from, &shape, free)?;
        }
    } else if let Some((from, free)) = from.zip(only_unknown(&shape)) {
        // A computed shape says it, or holds a -1 there: it can be nothing else than what is left.
        shape[free] = free_dim(from, &shape, free).unwrap_or(Dim::Unknown);
    } else if let Some(from) = from
        && let Some((a, b)) = known_product(from).zip(known_product(&shape))
        && a != b
    {
        return Err(format!("{} does not reshape to {}", show(from), show(&shape)));
    }
    let ints = ctx.ints(0).filter(|_| shape.len() <= 1).cloned();
    one(Type::maybe(ctx.dtype(0), Some(shape)).with_ints(ints))
}

/// The place of the one dim that is not known.
fn only_unknown(shape: &[Dim]) -> Option<usize> {
    let mut unknown = (0..).zip(shape).filter(|(_, dim)| **dim == Dim::Unknown).map(|(place, _)| place);
    unknown.next().filter(|_| unknown.next().is_none())
}

fn known_product(shape: &[Dim]) -> Option<u64> {
    shape.iter().try_fold(1, |n, d| d.known()?.checked_mul(n))
}

/// The dim written -1: what is left when equal symbols on both sides are cancelled.
fn free_dim(from: &[Dim], to: &[Dim], free: usize) -> Result<Dim, String> {
    let mut left: Vec<Dim> = from.to_vec();
    let mut divisor = 1u64;
    for dim in to.iter().enumerate().filter(|(i, _)| *i != free).map(|(_, d)| d) {
        match dim {
            Dim::Known(n) => divisor = divisor.saturating_mul(*n),
            Dim::Unknown => return Ok(Dim::Unknown),
            Dim::Sym(_) => match left.iter().position(|d| d == dim) {
                Some(i) => {
                    left.remove(i);
                }
                None => return Ok(Dim::Unknown),
            },
        }
    }
    let (known, symbols): (Vec<Dim>, Vec<Dim>) = left.into_iter().partition(|d| d.known().is_some());
    let product = known_product(&known).unwrap_or(1);
    match symbols.as_slice() {
        [] if divisor == 0 => Ok(Dim::Unknown),
        [] if !product.is_multiple_of(divisor) => {
            Err(format!("{product} elements do not divide by {divisor}"))
        }
        [] => Ok(Dim::Known(product / divisor)),
        [only] if product == divisor => Ok(only.clone()),
        _ => Ok(Dim::Unknown),
    }
}

fn eval_reshape(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let len: usize = x.shape().iter().product();
    let keep_zero = ctx.op.int("allowzero") == Some(1);
    let target = ctx.ints(1)?;
    let mut dims: Vec<usize> = Vec::with_capacity(target.len());
    for (i, t) in target.iter().enumerate() {
        dims.push(match t {
            0 if !keep_zero => *x.shape().get(i).ok_or_else(|| format!("no dim {i} to copy"))?,
            -1 => 1,
            n => usize::try_from(*n).map_err(|_| format!("dim {i} is {n}"))?,
        });
    }
    if let Some(free) = target.iter().position(|t| *t == -1) {
        let rest: usize = dims.iter().product();
        dims[free] = len.checked_div(rest).unwrap_or(0);
    }
    let view = |e: ndarray::ShapeError| format!("{:?} to {target:?}: {e}", x.shape());
    Ok(vec![
        each!(x, a => a.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&dims)).map_err(view)?),
    ])
}

fn infer_expand(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let rank = ctx.shape(1).and_then(|s| s.first()?.known()).filter(|r| *r <= MAX_RANK);
    let blank = rank.map(|r| vec![Dim::Unknown; r as usize]);
    let shape = broadcast_maybe(ctx.shape(0), ctx.ints(1).or(blank.as_ref()))?;
    one(Type::maybe(ctx.dtype(0), shape))
}

fn eval_expand(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let target: Vec<usize> = ctx.ints(1)?.iter().map(|d| *d as usize).collect();
    let shape = eval_shape(x.shape(), &target)?;
    let fail = || format!("{:?} does not expand to {target:?}", x.shape());
    Ok(vec![each!(x, a => a.broadcast(IxDyn(&shape)).ok_or_else(fail)?.to_owned())])
}

fn infer_concat(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..ctx.inputs.len())?;
    let ints = (0..ctx.inputs.len())
        .map(|i| ctx.ints(i).filter(|_| ctx.shape(i).is_some_and(|s| s.len() == 1)).cloned())
        .collect::<Option<Vec<_>>>()
        .map(|parts| parts.concat());
    let shapes: Option<Vec<&Shape>> = (0..ctx.inputs.len()).map(|i| ctx.shape(i)).collect();
    let Some(shapes) = shapes else { return one(Type::maybe(dtype, None).with_ints(ints)) };
    let mut shape = shapes[0].clone();
    let axis = ctx.axis("axis", shape.len())?;
    for other in &shapes[1..] {
        if other.len() != shape.len() {
            return Err(format!("{} and {} differ in rank", show(&shape), show(other)));
        }
        for i in 0..shape.len() {
            if i == axis {
                shape[i] = shape[i].plus(&other[i]);
            } else if shape[i].agrees(&other[i]) {
                shape[i] = shape[i].meet(&other[i]);
            } else {
                return Err(format!("{} and {} differ in dim {i}", show(&shape), show(other)));
            }
        }
    }
    one(Type::maybe(dtype, Some(shape)).with_ints(ints))
}

fn join<T: Clone>(axis: Axis, parts: &[&ArrayD<T>]) -> Result<ArrayD<T>, String> {
    let views: Vec<_> = parts.iter().map(|a| a.view()).collect();
    ndarray::concatenate(axis, &views).map_err(|e| e.to_string())
}

fn eval_concat(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let inputs: Vec<&Array> = (0..ctx.inputs.len()).map(|i| ctx.input(i)).collect::<Result<_, _>>()?;
    let axis = Axis(resolve_axis(ctx.int_attr("axis")?, inputs[0].shape().len())?);
    Ok(vec![match inputs[0] {
        Array::F(_) => {
            Array::F(join(axis, &inputs.iter().map(|a| a.as_f()).collect::<Result<Vec<_>, _>>()?)?)
        }
        Array::I(_) => {
            Array::I(join(axis, &inputs.iter().map(|a| a.as_i()).collect::<Result<Vec<_>, _>>()?)?)
        }
        Array::B(_) => {
            Array::B(join(axis, &inputs.iter().map(|a| a.as_b()).collect::<Result<Vec<_>, _>>()?)?)
        }
    }])
}

/// The sizes of the parts: given, or equal with a smaller last one.
fn split_sizes(total: u64, given: Option<Vec<i64>>, outputs: usize) -> Result<Vec<u64>, String> {
    let Some(given) = given else {
        let part = total.div_ceil(outputs as u64);
        return Ok((0..outputs as u64).map(|i| part.min(total.saturating_sub(i * part))).collect());
    };
    let sizes: Option<Vec<u64>> = given.iter().map(|n| u64::try_from(*n).ok()).collect();
    sizes
        .filter(|s| s.len() == outputs && s.iter().sum::<u64>() == total)
        .ok_or_else(|| format!("{total} does not split into {outputs} parts of {given:?}"))
}

fn infer_split(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else {
        return Ok(vec![Type::maybe(ctx.dtype(0), None); ctx.outputs]);
    };
    let axis = ctx.axis("axis", shape.len())?;
    let sizes: Vec<Dim> = match (&shape[axis], ctx.has(1), ctx.const_ints(1)) {
        (_, true, None) => vec![Dim::Unknown; ctx.outputs],
        (Dim::Known(n), _, given) => {
            split_sizes(*n, given, ctx.outputs)?.into_iter().map(Dim::Known).collect()
        }
        (_, _, Some(given)) if given.len() == ctx.outputs => {
            given.iter().map(|n| u64::try_from(*n).map_or(Dim::Unknown, Dim::Known)).collect()
        }
        _ => vec![Dim::Unknown; ctx.outputs],
    };
    let mut rest = ctx.ints(0).map(Vec::as_slice);
    let part = |size: Dim| {
        let cut = rest.zip(size.known()).and_then(|(all, size)| all.split_at_checked(size as usize));
        rest = cut.map(|(_, rest)| rest);
        let ints = cut.map(|(ints, _)| ints.to_vec());
        let mut shape = shape.clone();
        shape[axis] = size;
        Type::maybe(ctx.dtype(0), Some(shape)).with_ints(ints)
    };
    Ok(sizes.into_iter().map(part).collect())
}

fn eval_split(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let axis = resolve_axis(ctx.int_attr("axis")?, x.shape().len())?;
    let given = if ctx.has(1) { Some(ctx.ints(1)?) } else { None };
    let mut begin = 0;
    let sizes = split_sizes(x.shape()[axis] as u64, given, ctx.outputs)?;
    Ok(sizes
        .into_iter()
        .map(|size| {
            let range = Slice::from(begin..begin + size as usize);
            begin += size as usize;
            each!(x, a => a.slice_axis(Axis(axis), range).to_owned())
        })
        .collect())
}

/// One sliced axis: first index, past-the-end index, step; all in range (ONNX `Slice`).
fn slice_range(start: i64, end: i64, step: i64, dim: u64) -> Result<(i64, i64), String> {
    let n = dim as i64;
    let from_front = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    match step {
        0 => Err("a step is 0".to_owned()),
        1.. => Ok((from_front(start).clamp(0, n), from_front(end).clamp(0, n))),
        _ => Ok((from_front(start).clamp(-1, n - 1), from_front(end).clamp(-1, n - 1))),
    }
}

fn slice_len(start: i64, end: i64, step: i64, dim: u64) -> Result<u64, String> {
    let (start, end) = slice_range(start, end, step, dim)?;
    let span = if step > 0 { end - start } else { start - end };
    Ok(span.max(0).unsigned_abs().div_ceil(step.unsigned_abs()))
}

fn infer_slice(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return one(Type::maybe(ctx.dtype(0), None)) };
    let given = |i: usize| if ctx.has(i) { ctx.const_ints(i).map(Some) } else { Some(None) };
    let Some((axes, steps)) = given(3).zip(given(4)) else {
        return one(Type::maybe(ctx.dtype(0), Some(vec![Dim::Unknown; shape.len()])));
    };
    let count = ctx.shape(1).and_then(|s| s.first()?.known()).unwrap_or(shape.len() as u64);
    let axes = axes.unwrap_or_else(|| (0..count as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; axes.len()]);
    let (starts, ends) = (ctx.const_ints(1), ctx.const_ints(2));
    let mut out = shape.clone();
    for (i, (axis, step)) in axes.iter().zip(&steps).enumerate() {
        let axis = resolve_axis(*axis, shape.len())?;
        let bounds = starts.as_ref().and_then(|s| s.get(i)).zip(ends.as_ref().and_then(|e| e.get(i)));
        out[axis] = match (bounds, &shape[axis]) {
            (Some((s, e)), Dim::Known(n)) => Dim::Known(slice_len(*s, *e, *step, *n)?),
            (Some((0, e)), d) if *step == 1 && is_open_end(*e) => d.clone(),
            _ => computed_bounds(ctx, i, *step, &shape[axis]),
        };
    }
    one(Type::maybe(ctx.dtype(0), Some(out)).with_ints(slice_ints(ctx)))
}

/// The rows `0..n` of a table, for a symbolic n, its rows `n..n + m`, and what stands after the first n of n + m. A table
/// with fewer rows gives fewer, but then the model fails where they meet the tokens they are for.
fn computed_bounds(ctx: &InferContext<'_>, place: usize, step: i64, dim: &Dim) -> Dim {
    let given = |slot: usize| ctx.const_ints(slot).and_then(|b| b.get(place).copied());
    let followed = |slot: usize| ctx.ints(slot).and_then(|b| b.get(place));
    match (given(1), given(2), followed(1), followed(2), dim) {
        _ if step != 1 => Dim::Unknown,
        (Some(0), _, _, Some(end @ Dim::Sym(_)), Dim::Known(_)) => end.clone(),
        (Some(0), _, _, Some(end @ Dim::Sym(_)), dim) if end == dim => end.clone(),
        // Up to so many before the end.
        (Some(0), Some(end), _, _, dim @ Dim::Sym(_)) if end < 0 => {
            dim.minus(&Dim::Known(end.unsigned_abs()))
        }
        (_, Some(end), Some(start @ Dim::Sym(_)), _, dim) if is_open_end(end) => dim.minus(start),
        (_, _, Some(start @ Dim::Sym(_)), Some(end @ Dim::Sym(_)), Dim::Known(_)) => end.minus(start),
        _ => Dim::Unknown,
    }
}

/// A slice of followed integers.
fn slice_ints(ctx: &InferContext<'_>) -> Option<Vec<Dim>> {
    let ints = ctx.ints(0)?;
    let (start, end) = (ctx.const_ints(1)?, ctx.const_ints(2)?);
    if ctx.has(4) && ctx.const_ints(4)? != [1] {
        return None;
    }
    let (start, end) = slice_range(*start.first()?, *end.first()?, 1, ints.len() as u64).ok()?;
    Some(ints.get(start as usize..end.max(start) as usize)?.to_vec())
}

fn eval_slice(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let mut x = ctx.input(0)?.clone();
    let (starts, ends) = (ctx.ints(1)?, ctx.ints(2)?);
    let axes = if ctx.has(3) { ctx.ints(3)? } else { (0..starts.len() as i64).collect() };
    let steps = if ctx.has(4) { ctx.ints(4)? } else { vec![1; starts.len()] };
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = resolve_axis(*axis, x.shape().len())?;
        let n = x.shape()[axis] as u64;
        let (first, _) = slice_range(*start, *end, *step, n)?;
        let indices: Vec<usize> =
            (0..slice_len(*start, *end, *step, n)? as i64).map(|i| (first + i * step) as usize).collect();
        x = each!(&x, a => a.select(Axis(axis), &indices));
    }
    Ok(vec![x])
}

/// The `axes` attribute counted from the front of `rank`, sorted.
fn sorted_axes(op: &crate::ir::op::Op, rank: usize) -> Result<Vec<usize>, String> {
    let axes = op.ints("axes").ok_or("attribute `axes` is missing")?;
    let mut axes: Vec<usize> = axes.iter().map(|a| resolve_axis(*a, rank)).collect::<Result<_, _>>()?;
    axes.sort_unstable();
    axes.dedup();
    Ok(axes)
}

fn infer_squeeze(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let ints = ctx.ints(0).cloned();
    let Some(shape) = ctx.shape(0) else { return one(Type::maybe(ctx.dtype(0), None).with_ints(ints)) };
    let axes = sorted_axes(ctx.op, shape.len())?;
    if let Some(axis) = axes.iter().find(|a| !shape[**a].agrees(&Dim::Known(1))) {
        return Err(format!("dim {axis} of {} is not 1", show(shape)));
    }
    let kept = shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone());
    one(Type::maybe(ctx.dtype(0), Some(kept.collect())).with_ints(ints))
}

fn eval_squeeze(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let axes = sorted_axes(ctx.op, x.shape().len())?;
    if let Some(axis) = axes.iter().find(|a| x.shape()[**a] != 1) {
        return Err(format!("dim {axis} of {:?} is not 1", x.shape()));
    }
    let remove = |mut a: Array, axis: &usize| {
        a = each!(a, a => a.index_axis_move(Axis(*axis), 0));
        a
    };
    Ok(vec![axes.iter().rev().fold(x.clone(), remove)])
}

fn infer_unsqueeze(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let count = ctx.op.ints("axes").map_or(0, <[i64]>::len);
    let ints = ctx.ints(0).filter(|_| ctx.shape(0).is_some_and(Vec::is_empty)).cloned();
    let Some(shape) = ctx.shape(0) else { return one(Type::maybe(ctx.dtype(0), None).with_ints(ints)) };
    let mut out = shape.clone();
    for axis in sorted_axes(ctx.op, shape.len() + count)? {
        out.insert(axis, Dim::Known(1));
    }
    one(Type::maybe(ctx.dtype(0), Some(out)).with_ints(ints))
}

fn eval_unsqueeze(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let count = ctx.op.ints("axes").map_or(0, <[i64]>::len);
    let axes = sorted_axes(ctx.op, x.shape().len() + count)?;
    let insert = |a: Array, axis: &usize| each!(a, a => a.insert_axis(Axis(*axis)));
    Ok(vec![axes.iter().fold(x.clone(), insert)])
}

fn infer_shape(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else {
        return one(Type::maybe(Some(DType::I64), Some(vec![Dim::Unknown])));
    };
    let part = &shape[shape_range(ctx.op, shape.len())];
    one(Type::new(DType::I64, vec![Dim::Known(part.len() as u64)]).with_ints(Some(part.to_vec())))
}

fn shape_range(op: &crate::ir::op::Op, rank: usize) -> std::ops::Range<usize> {
    let bound = |name: &str| {
        let x = op.int(name).unwrap_or_default();
        let x = if x < 0 { x.saturating_add(rank as i64) } else { x };
        x.clamp(0, rank as i64) as usize
    };
    let (start, end) = (bound("start"), bound("end"));
    start..end.max(start)
}

fn eval_shape_of(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let shape = ctx.input(0)?.shape();
    let part: Vec<i64> = shape[shape_range(ctx.op, shape.len())].iter().map(|d| *d as i64).collect();
    Ok(vec![Array::from_i64(&[part.len()], part)?])
}

fn infer_pad(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return one(Type::maybe(ctx.dtype(0), None)) };
    let rank = shape.len();
    let pads = ctx.ints(1).filter(|p| p.len() == 2 * rank);
    let shape = shape.iter().enumerate().map(|(i, d)| match pads {
        Some(pads) => d.plus(&pads[i]).plus(&pads[rank + i]),
        None => Dim::Unknown,
    });
    one(Type::maybe(ctx.dtype(0), Some(shape.collect())))
}

fn pad<T: Clone>(a: &ArrayD<T>, pads: &[i64], fill: T) -> ArrayD<T> {
    let rank = a.ndim();
    let dims: Vec<usize> =
        (0..rank).map(|i| a.shape()[i] + pads[i] as usize + pads[rank + i] as usize).collect();
    let mut out = ArrayD::from_elem(IxDyn(&dims), fill);
    let mut inner = out.view_mut();
    for (i, begin) in pads.iter().take(rank).enumerate() {
        let begin = *begin as usize;
        inner.slice_axis_inplace(Axis(i), Slice::from(begin..begin + a.shape()[i]));
    }
    inner.assign(a);
    out
}

fn eval_pad(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.op.str("mode") != Some("constant") {
        return Err("only constant padding is known".to_owned());
    }
    let x = ctx.input(0)?;
    let pads = ctx.ints(1)?;
    let rank = x.shape().len();
    if pads.len() != 2 * rank || pads.iter().any(|p| *p < 0) {
        return Err(format!("pads {pads:?} do not fit rank {rank}"));
    }
    Ok(vec![match x {
        Array::F(a) => {
            let fill = if ctx.has(2) { ctx.f(2)?.iter().copied().next() } else { None };
            Array::F(pad(a, &pads, fill.unwrap_or(0.0)))
        }
        Array::I(a) => {
            let fill = if ctx.has(2) { ctx.i(2)?.iter().copied().next() } else { None };
            Array::I(pad(a, &pads, fill.unwrap_or(0)))
        }
        Array::B(a) => Array::B(pad(a, &pads, false)),
    }])
}

fn keep<T: Clone + Default>(a: &ArrayD<T>, upper: bool, k: i64) -> ArrayD<T> {
    let mut out = a.clone();
    let rank = a.ndim();
    for (index, x) in out.indexed_iter_mut() {
        let above = index[rank - 1] as i64 - index[rank - 2] as i64;
        if (upper && above < k) || (!upper && above > k) {
            *x = T::default();
        }
    }
    out
}

fn eval_trilu(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let upper = ctx.op.int("upper") == Some(1);
    let k = if ctx.has(1) { ctx.i(1)?.iter().copied().next().unwrap_or(0) } else { 0 };
    let x = ctx.input(0)?;
    if x.shape().len() < 2 {
        return Err("expected rank 2 or more".to_owned());
    }
    Ok(vec![each!(x, a => keep(a, upper, k))])
}

fn infer_range(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let at = |i: usize| ctx.ints(i).and_then(|v| v.first().cloned());
    let dim = match (at(0), at(1), at(2)) {
        // A limit below the start would give nothing; a sum is never below one of its terms.
        (Some(start), Some(limit), Some(Dim::Known(1))) => limit.minus(&start),
        _ => Dim::Unknown,
    };
    one(Type::maybe(same_dtype(ctx, 0..3)?, Some(vec![dim])))
}

fn eval_range(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let at = |i: usize| -> Result<f64, String> {
        ctx.input(i)?.to_f64().first().copied().ok_or("empty".to_owned())
    };
    let (start, limit, delta) = (at(0)?, at(1)?, at(2)?);
    let n = ((limit - start) / delta).ceil().max(0.0) as usize;
    let values = (0..n).map(|i| start + i as f64 * delta);
    Ok(vec![match ctx.input(0)? {
        Array::I(_) => Array::from_i64(&[n], values.map(|x| x as i64).collect())?,
        _ => Array::from_f64(&[n], values.collect())?,
    }])
}

fn infer_constant_of_shape(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = match ctx.op.attrs.get("value") {
        Some(Attr::Tensor(t)) => t.dtype(),
        _ => DType::F32,
    };
    let rank = ctx.shape(0).and_then(|s| s.first()?.known()).filter(|r| *r <= MAX_RANK);
    let blank = rank.map(|r| vec![Dim::Unknown; r as usize]);
    one(Type::maybe(Some(dtype), ctx.ints(0).cloned().or(blank)))
}

fn eval_constant_of_shape(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let dims: Vec<usize> = ctx.ints(0)?.iter().map(|d| *d as usize).collect();
    let n = dims.iter().product();
    let fill = match ctx.op.attrs.get("value") {
        Some(Attr::Tensor(t)) => Array::from_tensor(t)?,
        _ => Array::from_f64(&[1], vec![0.0])?,
    };
    Ok(vec![match fill {
        Array::F(a) => Array::from_f64(&dims, vec![a.iter().copied().next().unwrap_or(0.0); n])?,
        Array::I(a) => Array::from_i64(&dims, vec![a.iter().copied().next().unwrap_or(0); n])?,
        Array::B(a) => Array::B(ArrayD::from_elem(IxDyn(&dims), a.iter().any(|x| *x))),
    }])
}

#[cfg(test)]
mod tests {
    use crate::ir::text::{parse, print};

    /// What is known of `%y`, where a decoder knows its tokens and its past.
    fn known(lines: &str) -> String {
        let text = format!(
            r#"graph "g" {{
  input %input_ids: i64[batch, time]
  input %past: f32[batch, 2, past, 4]
  input %mask: i64[batch, past + time]
  input %x: f32[batch, 1, time, 32]
  weight %table: f32[16, 4] = random(1)
  const %axis: i64[1] = [0]
  const %three: i64[1] = [3]
  const %width: i64[1] = [8]
  const %rest: i64[1] = [-1]
  %before = Shape(%past) {{start: 2, end: 3}}
  %all = Shape(%mask) {{start: 1, end: 2}}
  %sizes = Shape(%input_ids)
{lines}
  output "y" %y
}}"#
        );
        let printed = print(&parse(&text).expect("it parses"));
        let line = printed.lines().find(|line| line.starts_with("  %y")).expect("it is computed").to_owned();
        line.rsplit_once(": ").expect("a type").1.to_owned()
    }

    #[test]
    fn rows_from_one_length_to_another_are_as_many_as_lie_between() {
        assert_eq!(known("  %y = Slice(%table, %before, %all, %axis)"), "f32[time, 4]");
        assert_eq!(known("  %y = Slice(%table, %all, %before, %axis)"), "f32[?, 4]");
        assert_eq!(known("  %y = Slice(%table, %three, %all, %axis)"), "f32[?, 4]");
    }

    #[test]
    fn the_one_dim_that_a_computed_shape_leaves_open_is_what_is_left() {
        let to =
            |parts: &str| known(&format!("  %to = Concat({parts}) {{axis: 0}}\n  %y = Reshape(%x, %to)"));
        assert_eq!(to("%sizes, %rest, %width"), "f32[batch, time, 4, 8]");
        assert_eq!(to("%rest, %rest, %width"), "f32[?, ?, 8]");
        assert_eq!(to("%sizes, %rest, %three"), "f32[batch, time, ?, 3]");
    }

    #[test]
    fn sizes_are_followed_through_a_split() {
        let lines = "  %rows, %columns = Split(%sizes) {axis: 0}
  %to = Concat(%columns, %rest, %width) {axis: 0}
  %y = Reshape(%x, %to)";
        assert_eq!(known(lines), "f32[time, ?, 8]");
        let parts = "  const %parts: i64[2] = [2, 3]\n  %y, %z = Split(%x, %parts) {axis: 0}";
        assert_eq!(known(parts), "f32[2, 1, time, 32], f32[3, 1, time, 32]");
    }
}
