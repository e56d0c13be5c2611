//! Operators that pick elements by index.

use super::ROW;
use super::layout::each;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, resolve_axis};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, Axis, Dimension, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "Gather",
        inputs: 2..=2,
        attrs: &[("axis", AttrSpec::Int(0))],
        infer: infer_gather,
        eval: eval_gather,
        ..ROW
    },
    OpSpec {
        name: "GatherElements",
        inputs: 2..=2,
        attrs: &[("axis", AttrSpec::Int(0))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(1).cloned())]),
        eval: eval_gather_elements,
        ..ROW
    },
    OpSpec {
        name: "GatherND",
        inputs: 2..=2,
        attrs: &[("batch_dims", AttrSpec::Int(0))],
        infer: infer_gather_nd,
        eval: eval_gather_nd,
        ..ROW
    },
    OpSpec {
        name: "ScatterND",
        inputs: 3..=3,
        attrs: &[("reduction", AttrSpec::Str("none"))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_scatter_nd,
        ..ROW
    },
    OpSpec {
        name: "ScatterElements",
        inputs: 3..=3,
        attrs: &[("axis", AttrSpec::Int(0)), ("reduction", AttrSpec::Str("none"))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_scatter_elements,
        ..ROW
    },
    OpSpec { name: "NonZero", infer: infer_non_zero, eval: eval_non_zero, ..ROW },
    extreme("ArgMax", |c| arg_extreme(c, |new, best| new > best)),
    extreme("ArgMin", |c| arg_extreme(c, |new, best| new < best)),
    OpSpec {
        name: "OneHot",
        inputs: 3..=3,
        attrs: &[("axis", AttrSpec::Int(-1))],
        infer: infer_one_hot,
        eval: eval_one_hot,
        ..ROW
    },
];

const fn extreme(name: &'static str, eval: fn(&EvalContext<'_>) -> Result<Vec<Array>, String>) -> OpSpec {
    OpSpec {
        name,
        attrs: &[
            ("axis", AttrSpec::Int(0)),
            ("keepdims", AttrSpec::Int(1)),
            ("select_last_index", AttrSpec::Int(0)),
        ],
        infer: infer_extreme,
        eval,
        ..ROW
    }
}

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

/// The slices of `data` that `indices` name, along an axis.
pub(super) fn gather<T: Clone>(
    data: &ArrayD<T>,
    indices: &ArrayD<i64>,
    axis: usize,
) -> Result<ArrayD<T>, String> {
    let n = data.shape()[axis];
    let flat = indices.iter().map(|i| resolve_axis(*i, n).map_err(|_| format!("index {i} is outside {n}")));
    let flat: Vec<usize> = flat.collect::<Result<_, _>>()?;
    let shape = [&data.shape()[..axis], indices.shape(), &data.shape()[axis + 1..]].concat();
    let picked = data.select(ndarray::Axis(axis), &flat).as_standard_layout().into_owned();
    picked.into_shape_with_order(IxDyn(&shape)).map_err(|e| e.to_string())
}

fn eval_gather_elements(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (data, indices) = (ctx.input(0)?, ctx.i(1)?);
    let axis = resolve_axis(ctx.int_attr("axis")?, data.shape().len())?;
    Ok(vec![each!(data, a => gather_elements(a, indices, axis)?)])
}

fn gather_elements<T: Clone>(
    data: &ArrayD<T>,
    indices: &ArrayD<i64>,
    axis: usize,
) -> Result<ArrayD<T>, String> {
    let n = data.shape()[axis];
    let picked = indices.indexed_iter().map(|(place, i)| {
        let mut place: Vec<usize> = place.slice().to_vec();
        place[axis] = resolve_axis(*i, n).map_err(|_| format!("index {i} is outside {n}"))?;
        data.get(IxDyn(&place)).cloned().ok_or_else(|| format!("{place:?} is outside {:?}", data.shape()))
    });
    let picked: Vec<T> = picked.collect::<Result<_, String>>()?;
    ArrayD::from_shape_vec(indices.raw_dim(), picked).map_err(|e| e.to_string())
}

/// How many places there are is known of constants alone.
fn infer_non_zero(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return Ok(vec![Type::maybe(Some(DType::I64), None)]) };
    let numbers = ctx.consts.first().copied().flatten().map(Tensor::to_f64);
    let count =
        numbers.map_or(Dim::Unknown, |all| Dim::Known(all.iter().filter(|x| **x != 0.0).count() as u64));
    Ok(vec![Type::new(DType::I64, [Dim::from(shape.len() as u64), count])])
}

/// The places of numbers that are not zero, one column each.
fn eval_non_zero(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.input(0)?;
    let places = ndarray::indices(IxDyn(x.shape())).into_iter().zip(x.to_f64());
    let found: Vec<IxDyn> = places.filter(|(_, x)| *x != 0.0).map(|(place, _)| place).collect();
    let rows = (0..x.shape().len()).flat_map(|axis| found.iter().map(move |place| place[axis] as i64));
    Ok(vec![Array::from_i64(&[x.shape().len(), found.len()], rows.collect())?])
}

/// Length of the index tuples: the last dim of the indices.
fn tuple_len(indices: &[Dim], batch: usize, rank: usize) -> Result<Option<usize>, String> {
    let Some(last) = indices.last() else { return Err("the indices are a scalar".to_owned()) };
    let Some(len) = last.known() else { return Ok(None) };
    if len as usize + batch > rank || batch >= indices.len() {
        return Err(format!("index tuples of {len} do not fit rank {rank} with {batch} batch dims"));
    }
    Ok(Some(len as usize))
}

fn infer_gather_nd(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let unknown = || Ok(vec![Type::maybe(ctx.dtype(0), None)]);
    let Some((data, indices)) = ctx.shape(0).zip(ctx.shape(1)) else { return unknown() };
    let batch = batch_dims(ctx.op.int("batch_dims"))?;
    let Some(len) = tuple_len(indices, batch, data.len())? else { return unknown() };
    let shape = [&indices[..indices.len() - 1], &data[batch + len..]].concat();
    Ok(vec![Type::maybe(ctx.dtype(0), Some(shape))])
}

fn batch_dims(attr: Option<i64>) -> Result<usize, String> {
    let n = attr.unwrap_or_default();
    usize::try_from(n).map_err(|_| format!("batch_dims is {n}"))
}

fn eval_gather_nd(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (data, indices) = (ctx.input(0)?, ctx.i(1)?);
    let batch = batch_dims(ctx.op.int("batch_dims"))?;
    Ok(vec![each!(data, a => gather_nd(a, indices, batch)?)])
}

/// Where each index tuple points: the leading dims of `data`, the first `batch` of them taken from
/// the place of the tuple itself.
fn places(data: &[usize], indices: &ArrayD<i64>, batch: usize) -> Result<Vec<Vec<usize>>, String> {
    let dims = |s: &[usize]| -> Vec<Dim> { s.iter().map(|d| Dim::Known(*d as u64)).collect() };
    let len = tuple_len(&dims(indices.shape()), batch, data.len())?.unwrap_or_default();
    let rows = &indices.shape()[..indices.ndim() - 1];
    let flat: Vec<i64> = indices.iter().copied().collect();
    ndarray::indices(IxDyn(rows))
        .into_iter()
        .enumerate()
        .map(|(row, place)| {
            let mut out: Vec<usize> = place.slice().iter().copied().take(batch).collect();
            for (i, index) in flat[row * len..(row + 1) * len].iter().enumerate() {
                let n = data[batch + i];
                out.push(resolve_axis(*index, n).map_err(|_| format!("index {index} is outside {n}"))?);
            }
            Ok(out)
        })
        .collect()
}

fn gather_nd<T: Clone>(data: &ArrayD<T>, indices: &ArrayD<i64>, batch: usize) -> Result<ArrayD<T>, String> {
    let mut out: Vec<T> = Vec::new();
    let mut tail: &[usize] = &[];
    for place in places(data.shape(), indices, batch)? {
        let mut part = data.view();
        for i in &place {
            part = part.index_axis_move(Axis(0), *i);
        }
        tail = &data.shape()[place.len()..];
        out.extend(part.iter().cloned());
    }
    let shape = [&indices.shape()[..indices.ndim() - 1], tail].concat();
    ArrayD::from_shape_vec(IxDyn(&shape), out).map_err(|e| e.to_string())
}

/// Whether updates are added to what is there, rather than put in its place.
fn adds(op: &Op) -> Result<bool, String> {
    match op.str("reduction") {
        Some("none") => Ok(false),
        Some("add") => Ok(true),
        other => Err(format!("reduction {other:?} is not known")),
    }
}

fn eval_scatter_nd(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (indices, adds) = (ctx.i(1)?, adds(ctx.op)?);
    Ok(vec![match (ctx.input(0)?, ctx.input(2)?) {
        (Array::F(a), Array::F(u)) if adds => Array::F(scatter_nd(a, indices, u, |old, new| old + new)?),
        (Array::I(a), Array::I(u)) if adds => Array::I(scatter_nd(a, indices, u, |old, new| old + new)?),
        (Array::F(a), Array::F(u)) => Array::F(scatter_nd(a, indices, u, |_, new| *new)?),
        (Array::I(a), Array::I(u)) => Array::I(scatter_nd(a, indices, u, |_, new| *new)?),
        (Array::B(a), Array::B(u)) if !adds => Array::B(scatter_nd(a, indices, u, |_, new| *new)?),
        _ => return Err("data and updates are of different kinds".to_owned()),
    }])
}

fn scatter_nd<T: Clone>(
    data: &ArrayD<T>,
    indices: &ArrayD<i64>,
    updates: &ArrayD<T>,
    join: fn(&T, &T) -> T,
) -> Result<ArrayD<T>, String> {
    let mut out = data.clone();
    let mut new = updates.iter();
    for place in places(data.shape(), indices, 0)? {
        let mut part = out.view_mut();
        for i in &place {
            part = part.index_axis_move(Axis(0), *i);
        }
        for x in &mut part {
            *x = join(x, new.next().ok_or("there are too few updates")?);
        }
    }
    Ok(out)
}

fn eval_scatter_elements(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (data, indices, adds) = (ctx.input(0)?, ctx.i(1)?, adds(ctx.op)?);
    let axis = resolve_axis(ctx.int_attr("axis")?, data.shape().len())?;
    Ok(vec![match (data, ctx.input(2)?) {
        (Array::F(a), Array::F(u)) if adds => {
            Array::F(scatter_elements(a, indices, u, axis, |old, new| old + new)?)
        }
        (Array::I(a), Array::I(u)) if adds => {
            Array::I(scatter_elements(a, indices, u, axis, |old, new| old + new)?)
        }
        (Array::F(a), Array::F(u)) => Array::F(scatter_elements(a, indices, u, axis, |_, new| *new)?),
        (Array::I(a), Array::I(u)) => Array::I(scatter_elements(a, indices, u, axis, |_, new| *new)?),
        _ => return Err("data and updates are of different kinds, or booleans".to_owned()),
    }])
}

fn scatter_elements<T: Clone>(
    data: &ArrayD<T>,
    indices: &ArrayD<i64>,
    updates: &ArrayD<T>,
    axis: usize,
    join: fn(&T, &T) -> T,
) -> Result<ArrayD<T>, String> {
    let (n, mut out) = (data.shape()[axis], data.clone());
    if indices.shape() != updates.shape() {
        return Err(format!("indices are {:?}, updates {:?}", indices.shape(), updates.shape()));
    }
    for ((place, i), new) in indices.indexed_iter().zip(updates) {
        let mut place: Vec<usize> = place.slice().to_vec();
        place[axis] = resolve_axis(*i, n).map_err(|_| format!("index {i} is outside {n}"))?;
        let old =
            out.get_mut(IxDyn(&place)).ok_or_else(|| format!("{place:?} is outside {:?}", data.shape()))?;
        *old = join(old, new);
    }
    Ok(out)
}

fn infer_extreme(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return Ok(vec![Type::maybe(Some(DType::I64), None)]) };
    let axis = ctx.axis("axis", shape.len())?;
    let mut shape = shape.clone();
    match ctx.op.int("keepdims") {
        Some(1) => shape[axis] = Dim::Known(1),
        _ => {
            shape.remove(axis);
        }
    }
    Ok(vec![Type::new(DType::I64, shape)])
}

fn arg_extreme(ctx: &EvalContext<'_>, better: fn(f64, f64) -> bool) -> Result<Vec<Array>, String> {
    let x = match ctx.input(0)? {
        Array::F(a) => a.clone(),
        Array::I(a) => a.mapv(|x| x as f64),
        Array::B(_) => return Err("booleans have no order".to_owned()),
    };
    let axis = Axis(resolve_axis(ctx.int_attr("axis")?, x.ndim())?);
    let last = ctx.op.int("select_last_index") == Some(1);
    let out = x.map_axis(axis, |row| {
        let mut best = 0;
        for (i, x) in row.iter().enumerate() {
            if better(*x, row[best]) || (last && *x == row[best]) {
                best = i;
            }
        }
        best as i64
    });
    Ok(vec![Array::I(if ctx.op.int("keepdims") == Some(1) { out.insert_axis(axis) } else { out })])
}

/// The place of the new axis, which may stand after all others.
fn one_hot_axis(axis: Option<i64>, rank: usize) -> Result<usize, String> {
    resolve_axis(axis.unwrap_or(-1), rank + 1)
}

fn infer_one_hot(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(shape) = ctx.shape(0) else { return Ok(vec![Type::maybe(ctx.dtype(2), None)]) };
    let mut shape = shape.clone();
    let axis = one_hot_axis(ctx.op.int("axis"), shape.len())?;
    let depth = ctx.ints(1).and_then(|d| d.first().cloned());
    shape.insert(axis, depth.unwrap_or(Dim::Unknown));
    Ok(vec![Type::maybe(ctx.dtype(2), Some(shape))])
}

fn eval_one_hot(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let indices = ctx.i(0)?;
    let axis = one_hot_axis(ctx.op.int("axis"), indices.ndim())?;
    let depth = ctx.ints(1)?.first().copied().ok_or("the depth is empty")?;
    let mut shape = indices.shape().to_vec();
    shape.insert(axis, usize::try_from(depth).map_err(|_| format!("the depth is {depth}"))?);
    let hot = ArrayD::from_shape_fn(IxDyn(&shape), |place| {
        let mut rest = place.slice().to_vec();
        let level = rest.remove(axis) as i64;
        let index = indices[IxDyn(&rest)];
        level == if index < 0 { index + depth } else { index }
    });
    let pick = |values: &[f64], hot: bool| values.get(usize::from(hot)).copied().unwrap_or_default();
    let values = ctx.input(2)?.to_f64();
    Ok(vec![match ctx.input(2)? {
        Array::F(_) => Array::F(hot.mapv(|h| pick(&values, h))),
        Array::I(_) => Array::I(hot.mapv(|h| pick(&values, h) as i64)),
        Array::B(_) => Array::B(hot.mapv(|h| pick(&values, h) != 0.0)),
    }])
}

#[cfg(test)]
mod tests {
    use crate::canon::canonicalize;
    use crate::ir::eval::{Array, eval};
    use crate::ir::text::{parse, print};
    use std::collections::BTreeMap;

    /// As `repeat_interleave` is exported: each element as often as is told.
    #[test]
    fn places_of_constants_are_counted() {
        let text = r#"graph "g" {
  input %x: f32[2, batch]
  const %none: i64[] = [0]
  const %two: i64[] = [2]
  const %one: i64[] = [1]
  const %times: i64[2, 1] = [2, 1]
  %steps = Range(%none, %two, %one)
  %kept = Less(%steps, %times)
  %places = NonZero(%kept)
  %pairs = Transpose(%places) {perm: [1, 0]}
  const %axis: i64[3] = [2, 2, 1]
  %wide = Unsqueeze(%x) {axes: [1]}
  %spread = Expand(%wide, %axis)
  %y = GatherND(%spread, %pairs)
  output "y" %y
}"#;
        let after = |text: &str| {
            let mut graph = parse(text).expect("it parses");
            canonicalize(&mut graph).expect("it settles");
            print(&graph)
        };
        let typed = after(text);
        assert!(typed.contains("\"y\": f32[3, batch]") && !typed.contains("NonZero"), "{typed}");
        let computed = after(&text.replace("const %times: i64[2, 1] = [2, 1]", "input %times: i64[2, 1]"));
        assert!(computed.contains("i64[2, ?]"), "{computed}");
        let graph = parse(text).expect("it parses");
        let x = Array::from_f64(&[2, 1], vec![5.0, 7.0]).expect("two numbers");
        let y = eval(&graph, &BTreeMap::from([(graph.inputs()[0], x)]), &[graph.outputs()[0].1]);
        assert_eq!(y.expect("it runs")[0].to_f64(), [5.0, 5.0, 7.0]);
    }
}
