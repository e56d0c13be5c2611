//! Rotary position embedding (Su et al. 2021): `RotaryEmbedding` of `ai.onnx` (opset 23) and of
//! `com.microsoft`, which take their inputs in another order.

use super::{ROW, unpacked};
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::Type;
use crate::ir::op::{AttrSpec, OpSpec};
use ndarray::{Array4, ArrayD, ArrayView1, Axis, IxDyn};

const SHARED: OpSpec = OpSpec {
    name: "RotaryEmbedding",
    infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
    ..ROW
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        inputs: 3..=4,
        attrs: &[
            ("interleaved", AttrSpec::Int(0)),
            ("num_heads", AttrSpec::Int(0)),
            ("rotary_embedding_dim", AttrSpec::Int(0)),
        ],
        eval: eval_onnx,
        ..SHARED
    },
    OpSpec {
        domain: "com.microsoft",
        inputs: 4..=4,
        attrs: &[
            ("interleaved", AttrSpec::Int(0)),
            ("num_heads", AttrSpec::Int(0)),
            ("rotary_embedding_dim", AttrSpec::Int(0)),
            ("is_packed_batching", AttrSpec::Int(0)),
            ("scale", AttrSpec::Float(1.0)),
        ],
        eval: eval_microsoft,
        ..SHARED
    },
];

/// The row of the cache for token `t` of batch row `b`.
type Row<'a> = dyn Fn(usize, usize) -> Result<Vec<usize>, String> + 'a;

fn eval_onnx(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (cos, sin) = (ctx.f(1)?, ctx.f(2)?);
    let place: Box<Row<'_>> = if ctx.has(3) {
        let positions = ctx.i(3)?;
        Box::new(|b, t| Ok(vec![position(positions, b, t)?]))
    } else {
        // Without positions the caches are laid out token by token; ours broadcast over the batch.
        let &[batch, ..] = cos.shape() else { return Err("the cache is a scalar".to_owned()) };
        Box::new(move |b, t| Ok(vec![if batch == 1 { 0 } else { b }, t]))
    };
    rotate(ctx, cos, sin, &*place)
}

fn eval_microsoft(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.op.int("is_packed_batching") == Some(1) || ctx.op.float("scale") != Some(1.0) {
        return Err("packed batches and a scale are not known".to_owned());
    }
    let positions = ctx.i(1)?;
    rotate(ctx, ctx.f(2)?, ctx.f(3)?, &|b, t| Ok(vec![position(positions, b, t)?]))
}

/// One position per token, or the first one of all.
fn position(positions: &ArrayD<i64>, b: usize, t: usize) -> Result<usize, String> {
    let found = match positions.ndim() {
        0 | 1 => positions.iter().next().map(|first| first + t as i64),
        _ => positions.get(IxDyn(&[if positions.shape()[0] == 1 { 0 } else { b }, t])).copied(),
    };
    let found = found.ok_or_else(|| format!("token {t} has no position"))?;
    usize::try_from(found).map_err(|_| format!("position {found} is negative"))
}

/// Rotates `[batch, heads, time, head_dim]` by the rows of the caches (cosines, sines) that
/// `positions` name; the width of the caches says how many dims are rotated.
pub(super) fn rotate_heads(
    x: &ArrayD<f64>,
    positions: &ArrayD<i64>,
    [cos, sin]: [&ArrayD<f64>; 2],
    interleaved: bool,
) -> Result<ArrayD<f64>, String> {
    let mut heads: Array4<f64> = x.clone().into_dimensionality().map_err(|e| e.to_string())?;
    let width = cos.shape().last().map_or(0, |half| half * 2);
    let place = |b: usize, t: usize| Ok(vec![position(positions, b, t)?]);
    rotate_all(&mut heads, [cos, sin], width, interleaved, &place)?;
    Ok(heads.into_dyn())
}

fn rotate(
    ctx: &EvalContext<'_>,
    cos: &ArrayD<f64>,
    sin: &ArrayD<f64>,
    place: &Row<'_>,
) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let mut heads = by_head(x, ctx.op.int("num_heads"), cos.shape().last().map_or(0, |half| half * 2))?;
    let interleaved = ctx.op.int("interleaved") == Some(1);
    let width = match ctx.op.int("rotary_embedding_dim") {
        Some(n) if n > 0 => n as usize,
        _ => heads.dim().3,
    };
    rotate_all(&mut heads, [cos, sin], width, interleaved, place)?;
    back(heads, x.shape())
}

fn rotate_all(
    heads: &mut Array4<f64>,
    [cos, sin]: [&ArrayD<f64>; 2],
    width: usize,
    interleaved: bool,
    place: &Row<'_>,
) -> Result<(), String> {
    let (batch, _, time, head_dim) = heads.dim();
    if width > head_dim {
        return Err(format!("{width} of {head_dim} dims cannot be rotated"));
    }
    for b in 0..batch {
        for t in 0..time {
            let row = place(b, t)?;
            let (c, s) = (cache_row(cos, &row, width)?, cache_row(sin, &row, width)?);
            for mut head in heads.index_axis_mut(Axis(0), b).index_axis_mut(Axis(1), t).rows_mut() {
                turn(&mut head, &c, &s, interleaved);
            }
        }
    }
    Ok(())
}

/// `[batch, heads, time, head_dim]`, from that or from `[batch, time, heads · head_dim]`.
fn by_head(x: &ArrayD<f64>, heads: Option<i64>, head_dim: usize) -> Result<Array4<f64>, String> {
    let &[_, _, hidden] = x.shape() else {
        return x.clone().into_dimensionality().map_err(|_| format!("{:?} has no heads", x.shape()));
    };
    let heads = match heads {
        Some(n) if n > 0 => n as usize,
        _ => hidden / head_dim.max(1),
    };
    Ok(unpacked(x, heads)?.permuted_axes([0, 2, 1, 3]))
}

fn back(heads: Array4<f64>, shape: &[usize]) -> Result<Vec<Array>, String> {
    if shape.len() == 4 {
        return Ok(vec![Array::F(heads.into_dyn())]);
    }
    let tokens = heads.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
    Ok(vec![Array::F(tokens.into_shape_with_order(IxDyn(shape)).map_err(|e| e.to_string())?)])
}

fn cache_row<'a>(cache: &'a ArrayD<f64>, row: &[usize], width: usize) -> Result<ArrayView1<'a, f64>, String> {
    let mut part = cache.view();
    for i in row {
        if part.ndim() < 2 || *i >= part.shape()[0] {
            return Err(format!("row {row:?} is outside the cache {:?}", cache.shape()));
        }
        part = part.index_axis_move(Axis(0), *i);
    }
    let fits = part.shape() == [width / 2];
    part.into_dimensionality()
        .ok()
        .filter(|_| fits)
        .ok_or_else(|| format!("the cache {:?} does not rotate {width} dims", cache.shape()))
}

fn turn(
    head: &mut ndarray::ArrayViewMut1<'_, f64>,
    cos: &ArrayView1<'_, f64>,
    sin: &ArrayView1<'_, f64>,
    interleaved: bool,
) {
    let half = cos.len();
    for i in 0..half {
        let (re, im) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (x, y) = (head[re], head[im]);
        head[re] = x * cos[i] - y * sin[i];
        head[im] = x * sin[i] + y * cos[i];
    }
}
