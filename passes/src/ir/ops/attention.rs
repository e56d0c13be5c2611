//! Fused softmax attention: `Attention` of `ai.onnx` (opset 23), and `Attention`, `MultiHeadAttention`
//! and `GroupQueryAttention` of ONNX Runtime. What of their options is not known is refused.

use super::elementwise::zip;
use super::matmul::matmul;
use super::normalize::softmax;
use super::unpacked;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{Attr, AttrSpec, Op, OpSpec};
use crate::ir::shape::{Dim, Shape};
use ndarray::{ArrayD, Axis, IxDyn, Slice};

const MICROSOFT: &str = "com.microsoft";

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        domain: "",
        name: "Attention",
        inputs: 3..=7,
        outputs: 1..=4,
        attrs: &[
            ("is_causal", AttrSpec::Int(0)),
            ("kv_num_heads", AttrSpec::Int(0)),
            ("left_window_size", AttrSpec::Int(-1)),
            ("q_num_heads", AttrSpec::Int(0)),
            ("qk_matmul_output_mode", AttrSpec::Int(0)),
            ("right_window_size", AttrSpec::Int(-1)),
            // Absent means 1/√head_dim.
            ("scale", AttrSpec::Float(f32::NAN)),
            ("softcap", AttrSpec::Float(0.0)),
            ("softmax_precision", AttrSpec::Int(1)),
        ],
        infer: infer_onnx,
        eval: eval_onnx,
    },
    OpSpec {
        domain: MICROSOFT,
        name: "Attention",
        inputs: 2..=7,
        outputs: 1..=2,
        attrs: &[
            ("do_rotary", AttrSpec::Int(0)),
            ("mask_filter_value", AttrSpec::Float(-10_000.0)),
            ("num_heads", AttrSpec::RequiredInt),
            ("past_present_share_buffer", AttrSpec::Int(0)),
            ("qkv_hidden_sizes", AttrSpec::Ints),
            ("rotary_embedding_dim", AttrSpec::Int(0)),
            ("scale", AttrSpec::Float(0.0)),
            ("unidirectional", AttrSpec::Int(0)),
        ],
        infer: infer_packed,
        eval: eval_packed,
    },
    OpSpec {
        domain: MICROSOFT,
        name: "MultiHeadAttention",
        inputs: 1..=10,
        outputs: 1..=4,
        attrs: &[
            ("mask_filter_value", AttrSpec::Float(-10_000.0)),
            ("num_heads", AttrSpec::RequiredInt),
            ("scale", AttrSpec::Float(0.0)),
            ("unidirectional", AttrSpec::Int(0)),
        ],
        infer: infer_multi_head,
        eval: eval_multi_head,
    },
    OpSpec {
        domain: MICROSOFT,
        name: "GroupQueryAttention",
        inputs: 1..=16,
        outputs: 1..=4,
        attrs: &[
            ("causal", AttrSpec::Int(1)),
            ("do_rotary", AttrSpec::Int(0)),
            ("k_quant_type", AttrSpec::Str("NONE")),
            ("kv_cache_bit_width", AttrSpec::Int(0)),
            ("kv_num_heads", AttrSpec::RequiredInt),
            ("local_window_size", AttrSpec::Int(-1)),
            ("num_heads", AttrSpec::RequiredInt),
            ("qk_norm_epsilon", AttrSpec::Float(1e-6)),
            ("qk_output", AttrSpec::Int(0)),
            ("rotary_interleaved", AttrSpec::Int(0)),
            ("scale", AttrSpec::Float(0.0)),
            ("sliding_window_cache", AttrSpec::Int(0)),
            ("smooth_softmax", AttrSpec::Int(-1)),
            ("softcap", AttrSpec::Float(0.0)),
            ("v_quant_type", AttrSpec::Str("NONE")),
        ],
        infer: infer_grouped,
        eval: eval_grouped,
    },
];

/// The smallest number of f32, with which masks are filled.
pub(crate) const LOWEST: f64 = f32::MIN as f64;

/// The options of an operator, spelled out, that what is computed here does not cover.
///
/// The rules that expand these operators refuse the same ones.
pub(crate) fn unsupported(op: &Op, has: impl Fn(usize) -> bool, outputs: usize) -> Option<&'static str> {
    let set = |name: &str, default: i64| op.int(name).is_some_and(|x| x != default);
    let found = match (op.domain(), op.name()) {
        ("", "Attention") => [
            (set("left_window_size", -1) || set("right_window_size", -1), "a window"),
            (op.float("softcap").is_some_and(|cap| cap < 0.0), "a soft cap below zero"),
            (has(6), "nonpad_kv_seqlen"),
            (outputs > 3, "the output qk_matmul_output"),
        ]
        .to_vec(),
        (_, "Attention") => [
            (set("do_rotary", 0), "rotary embedding"),
            (set("past_present_share_buffer", 0) || has(6), "a shared buffer"),
            (has(4) || outputs > 1, "a packed cache"),
        ]
        .to_vec(),
        (_, "MultiHeadAttention") => [
            (!has(1) || !has(2), "packed queries, keys and values"),
            (has(8) || has(9), "a shared buffer"),
            (outputs > 3, "the output qk"),
        ]
        .to_vec(),
        _ => [
            (
                set("sliding_window_cache", 0),
                "sliding_window_cache, a cache that holds no more than a window,",
            ),
            (is_other_window(op), "local_window_size, a window of another kind,"),
            (op.float("softcap").is_some_and(|cap| cap < 0.0), "a soft cap below zero"),
            (set("smooth_softmax", -1) && set("smooth_softmax", 0), "smooth_softmax"),
            (has(11), "head_sink, a score of no key,"),
            (set("qk_output", 0) || outputs > 3, "the output output_qk"),
            ((12..16).any(&has) || set("kv_cache_bit_width", 0), "a quantised cache or a norm of queries"),
        ]
        .to_vec(),
    };
    found.into_iter().find(|(is_set, _)| *is_set).map(|(_, what)| what)
}

/// How many tokens a query of `GroupQueryAttention` sees, itself among them, where it does not see all.
pub(crate) fn local_window(op: &Op) -> Option<i64> {
    op.int("local_window_size").filter(|tokens| *tokens > 0)
}

/// A window of nothing, or one without an order.
fn is_other_window(op: &Op) -> bool {
    let asks = op.int("local_window_size").is_some_and(|tokens| tokens != -1);
    asks && !(local_window(op).is_some() && op.int("causal") == Some(1))
}

/// The scale of the products: given, or 1/√head_dim. ONNX Runtime reads its own 0 as not given.
pub(crate) fn scale(op: &Op, head_dim: usize) -> f64 {
    match op.attrs.get("scale") {
        Some(Attr::Float(x)) if *x != 0.0 || op.domain().is_empty() => f64::from(*x),
        _ => (head_dim as f64).sqrt().recip(),
    }
}

/// c, where a score x becomes c · tanh(x / c). ONNX Runtime reads 0 as none.
pub(crate) fn softcap(op: &Op) -> Option<f64> {
    op.float("softcap").filter(|cap| *cap > 0.0).map(f64::from)
}

fn check(ctx: &EvalContext<'_>) -> Result<(), String> {
    match unsupported(ctx.op, |i| ctx.has(i), ctx.outputs) {
        Some(what) => Err(format!("{what} is not known")),
        None => Ok(()),
    }
}

fn count(op: &Op, name: &str) -> Option<usize> {
    op.int(name).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
}

fn heads(op: &Op, name: &str) -> Result<usize, String> {
    count(op, name).ok_or_else(|| format!("`{name}` is not positive"))
}

/// `[batch, heads, time, dim]` from `[batch, time, heads · dim]`.
fn split(x: &ArrayD<f64>, heads: usize) -> Result<ArrayD<f64>, String> {
    Ok(unpacked(x, heads)?.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned().into_dyn())
}

fn merge(x: &ArrayD<f64>) -> Result<ArrayD<f64>, String> {
    let &[b, h, t, d] = x.shape() else { return Err(format!("{:?} has no heads", x.shape())) };
    let tokens = x.clone().permuted_axes(IxDyn(&[0, 2, 1, 3])).as_standard_layout().into_owned();
    tokens.into_shape_with_order(IxDyn(&[b, t, h * d])).map_err(|e| e.to_string())
}

fn join(past: Option<&ArrayD<f64>>, new: ArrayD<f64>) -> Result<ArrayD<f64>, String> {
    let Some(past) = past else { return Ok(new) };
    ndarray::concatenate(Axis(2), &[past.view(), new.view()]).map_err(|e| e.to_string())
}

/// softmax(scale · q kᵀ + bias) v, each key/value head shared by its query heads, and the products capped where the
/// operator says so.
fn attend(
    op: &Op,
    q: &ArrayD<f64>,
    [k, v]: [&ArrayD<f64>; 2],
    bias: Option<&ArrayD<f64>>,
) -> Result<ArrayD<f64>, String> {
    let (q_heads, kv_heads) = (q.shape()[1], k.shape()[1]);
    if kv_heads == 0 || q_heads % kv_heads != 0 || k.ndim() != 4 || v.shape()[1] != kv_heads {
        return Err(format!("{q_heads} query heads do not share {kv_heads} key/value heads"));
    }
    let shared: Vec<usize> = (0..q_heads).map(|h| h * kv_heads / q_heads).collect();
    let mut transposed = k.select(Axis(1), &shared);
    transposed.swap_axes(2, 3);
    let mut scores = matmul(q, &transposed)? * scale(op, q.shape()[3]);
    if let Some(cap) = softcap(op) {
        scores.mapv_inplace(|x| cap * (x / cap).tanh());
    }
    if let Some(bias) = bias {
        scores = zip(&scores, bias, |s, b| s + b)?;
    }
    matmul(&guarded_softmax(&scores), &v.select(Axis(1), &shared))
}

/// Softmax over the last axis; a query that sees no key at all takes nothing from any.
fn guarded_softmax(scores: &ArrayD<f64>) -> ArrayD<f64> {
    let mut out = softmax(scores, 3);
    for (mut lane, scores) in out.lanes_mut(Axis(3)).into_iter().zip(scores.lanes(Axis(3))) {
        if scores.iter().all(|s| *s == f64::NEG_INFINITY) {
            lane.fill(0.0);
        }
    }
    out
}

/// `[time, total]`: 0 where query `i` sees key `j` ≤ `past + i`, `closed` elsewhere.
fn causal(time: usize, total: usize, past: usize, closed: f64) -> ArrayD<f64> {
    ArrayD::from_shape_fn(IxDyn(&[time, total]), |at| if at[1] > past + at[0] { closed } else { 0.0 })
}

fn add(a: Option<ArrayD<f64>>, b: ArrayD<f64>) -> Result<ArrayD<f64>, String> {
    match a {
        Some(a) => zip(&a, &b, |x, y| x + y),
        None => Ok(b),
    }
}

fn optional<'a>(ctx: &EvalContext<'a>, slot: usize) -> Result<Option<&'a ArrayD<f64>>, String> {
    if ctx.has(slot) { ctx.f(slot).map(Some) } else { Ok(None) }
}

fn eval_onnx(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    check(ctx)?;
    let packed = ctx.f(0)?.ndim() == 3;
    let side = |slot: usize, name: &str| -> Result<ArrayD<f64>, String> {
        if packed { split(ctx.f(slot)?, heads(ctx.op, name)?) } else { Ok(ctx.f(slot)?.clone()) }
    };
    let q = side(0, "q_num_heads")?;
    let past = optional(ctx, 4)?;
    let k = join(past, side(1, "kv_num_heads")?)?;
    let v = join(optional(ctx, 5)?, side(2, "kv_num_heads")?)?;
    let mut bias = match ctx.has(3).then(|| ctx.input(3)).transpose()? {
        None => None,
        Some(Array::B(open)) => Some(open.mapv(|open| if open { 0.0 } else { f64::NEG_INFINITY })),
        Some(other) => Some(other.as_f()?.clone()),
    };
    if ctx.op.int("is_causal") == Some(1) {
        let past = past.map_or(0, |p| p.shape()[2]);
        bias = Some(add(bias, causal(q.shape()[2], k.shape()[2], past, f64::NEG_INFINITY))?);
    }
    let out = attend(ctx.op, &q, [&k, &v], bias.as_ref())?;
    let out = if packed { merge(&out)? } else { out };
    Ok(vec![Array::F(out), Array::F(k), Array::F(v)])
}

/// Sizes of queries, keys and values in packed weights of `total` columns.
pub(crate) fn packed_sizes(op: &Op, total: u64) -> Result<Vec<i64>, String> {
    let sizes = op.ints("qkv_hidden_sizes").map_or_else(|| vec![total as i64 / 3; 3], <[i64]>::to_vec);
    if sizes.len() == 3 && sizes.iter().sum::<i64>() == total as i64 && sizes.iter().all(|n| *n > 0) {
        return Ok(sizes);
    }
    Err(format!("{total} columns do not split into {sizes:?}"))
}

/// The bias of ONNX Runtime's masks: 0 or 1 per key (rank 2) or per query and key (rank 3), or the
/// number of keys of each row (rank 1).
fn key_mask(mask: &ArrayD<i64>, batch: usize, total: usize, closed: f64) -> Result<ArrayD<f64>, String> {
    let fill = |open: bool| if open { 0.0 } else { closed };
    match mask.ndim() {
        1 if mask.len() == batch => Ok(ArrayD::from_shape_fn(IxDyn(&[batch, 1, 1, total]), |at| {
            fill((at[3] as i64) < mask[IxDyn(&[at[0]])])
        })),
        2 => Ok(mask.mapv(|m| fill(m > 0)).insert_axis(Axis(1)).insert_axis(Axis(1))),
        3 => Ok(mask.mapv(|m| fill(m > 0)).insert_axis(Axis(1))),
        _ => Err(format!("a mask {:?} is not known", mask.shape())),
    }
}

/// The mask input, the bias input and `unidirectional`, as one bias.
fn fused_bias(
    ctx: &EvalContext<'_>,
    [mask, bias]: [usize; 2],
    [batch, time, total]: [usize; 3],
) -> Result<Option<ArrayD<f64>>, String> {
    let closed = f64::from(ctx.op.float("mask_filter_value").unwrap_or_default());
    let mut sum = optional(ctx, bias)?.cloned();
    if ctx.has(mask) {
        sum = Some(add(sum, key_mask(ctx.i(mask)?, batch, total, closed)?)?);
    }
    if ctx.op.int("unidirectional") == Some(1) {
        sum = Some(add(sum, causal(time, total, total - time, LOWEST))?);
    }
    Ok(sum)
}

fn eval_packed(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    check(ctx)?;
    let heads = heads(ctx.op, "num_heads")?;
    let mut all = matmul(ctx.f(0)?, ctx.f(1)?)?;
    if let Some(bias) = optional(ctx, 2)? {
        all = zip(&all, bias, |x, b| x + b)?;
    }
    let sizes = packed_sizes(ctx.op, *all.shape().last().ok_or("a scalar")? as u64)?;
    let mut begin = 0;
    let mut parts = Vec::new();
    for size in sizes {
        let columns = Slice::from(begin..begin + size as usize);
        begin += size as usize;
        parts.push(split(&all.slice_axis(Axis(2), columns).to_owned(), heads)?);
    }
    let (q, k, v) = (&parts[0], &parts[1], &parts[2]);
    let time = q.shape()[2];
    let bias = fused_bias(ctx, [3, 5], [q.shape()[0], time, time])?;
    let out = attend(ctx.op, q, [k, v], bias.as_ref())?;
    Ok(vec![Array::F(merge(&out)?)])
}

fn eval_multi_head(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    check(ctx)?;
    let heads = heads(ctx.op, "num_heads")?;
    let widths: Vec<usize> =
        (0..3).map(|i| Ok(*ctx.f(i)?.shape().last().ok_or("a scalar")?)).collect::<Result<_, String>>()?;
    let side = |slot: usize| -> Result<ArrayD<f64>, String> {
        let x = ctx.f(slot)?;
        // By head already, as keys and values of another sequence may be.
        if x.ndim() == 4 {
            return Ok(x.clone());
        }
        let begin: usize = widths[..slot].iter().sum();
        let biased = match optional(ctx, 3)? {
            Some(bias) => {
                let part = bias.slice_axis(Axis(0), Slice::from(begin..begin + widths[slot])).to_owned();
                zip(x, &part, |x, b| x + b)?
            }
            None => x.clone(),
        };
        split(&biased, heads)
    };
    let q = side(0)?;
    let k = join(optional(ctx, 6)?, side(1)?)?;
    let v = join(optional(ctx, 7)?, side(2)?)?;
    let bias = fused_bias(ctx, [4, 5], [q.shape()[0], q.shape()[2], k.shape()[2]])?;
    let out = attend(ctx.op, &q, [&k, &v], bias.as_ref())?;
    Ok(vec![Array::F(merge(&out)?), Array::F(k), Array::F(v)])
}

/// Queries, keys and values by head, from three inputs or from one.
fn grouped_parts(ctx: &EvalContext<'_>) -> Result<[ArrayD<f64>; 3], String> {
    let (q_heads, kv_heads) = (heads(ctx.op, "num_heads")?, heads(ctx.op, "kv_num_heads")?);
    if ctx.has(1) && ctx.has(2) {
        return Ok([split(ctx.f(0)?, q_heads)?, split(ctx.f(1)?, kv_heads)?, split(ctx.f(2)?, kv_heads)?]);
    }
    let all = split(ctx.f(0)?, q_heads + 2 * kv_heads)?;
    let part = |from: usize, to: usize| all.slice_axis(Axis(1), Slice::from(from..to)).to_owned();
    let total = q_heads + 2 * kv_heads;
    Ok([part(0, q_heads), part(q_heads, q_heads + kv_heads), part(q_heads + kv_heads, total)])
}

/// How many keys of the past each row has: in a prompt none, and shorter rows are padded at their end.
fn past_of_rows(counts: &[i64], batch: usize, past: usize, time: usize) -> Result<Vec<usize>, String> {
    let row = |count: &i64| match past {
        0 => Some(0),
        _ => usize::try_from(count + 1 - time as i64).ok().filter(|n| *n <= past),
    };
    let rows: Option<Vec<usize>> = counts.iter().map(row).collect();
    rows.filter(|rows| rows.len() == batch).ok_or_else(|| {
        format!("key counts {counts:?} less one do not fit {time} new keys after {past} in {batch} rows")
    })
}

/// The new keys of each row after as much of the past as is its own, and zeros after those.
fn join_rows(past: Option<&ArrayD<f64>>, new: ArrayD<f64>, rows: &[usize]) -> ArrayD<f64> {
    let Some(past) = past else { return new };
    let mut shape = new.shape().to_vec();
    let time = shape[2];
    shape[2] += past.shape()[2];
    let mut out = ArrayD::zeros(IxDyn(&shape));
    for (b, len) in rows.iter().copied().enumerate() {
        let mut row = out.index_axis_mut(Axis(0), b);
        let old = past.index_axis(Axis(0), b);
        row.slice_axis_mut(Axis(1), Slice::from(..len)).assign(&old.slice_axis(Axis(1), Slice::from(..len)));
        row.slice_axis_mut(Axis(1), Slice::from(len..len + time)).assign(&new.index_axis(Axis(0), b));
    }
    out
}

fn eval_grouped(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    check(ctx)?;
    let [mut q, mut k, v] = grouped_parts(ctx)?;
    let past = optional(ctx, 3)?;
    let (batch, time, past_len) = (q.shape()[0], q.shape()[2], past.map_or(0, |p| p.shape()[2]));
    let counts = ctx.ints(5)?;
    let rows = past_of_rows(&counts, batch, past_len, time)?;
    let total = past_len + time;
    if ctx.op.int("do_rotary") == Some(1) {
        let positions = match ctx.has(9) {
            true => ctx.i(9)?.clone(),
            false => ArrayD::from_shape_fn(IxDyn(&[batch, time]), |at| (rows[at[0]] + at[1]) as i64),
        };
        let interleaved = ctx.op.int("rotary_interleaved") == Some(1);
        for x in [&mut q, &mut k] {
            *x = super::rotary::rotate_heads(x, &positions, [ctx.f(7)?, ctx.f(8)?], interleaved)?;
        }
    }
    let (k, v) = (join_rows(past, k, &rows), join_rows(optional(ctx, 4)?, v, &rows));
    let counts = ArrayD::from_shape_fn(IxDyn(&[batch]), |at| counts[at[0]] + 1);
    let mut bias = add(optional(ctx, 10)?.cloned(), key_mask(&counts, batch, total, LOWEST)?)?;
    if ctx.op.int("causal") == Some(1) {
        let window = local_window(ctx.op).and_then(|tokens| usize::try_from(tokens).ok());
        let seen = ArrayD::from_shape_fn(IxDyn(&[batch, 1, time, total]), |at| {
            let age = (rows[at[0]] + at[2]).checked_sub(at[3]);
            let is_seen = age.is_some_and(|age| window.is_none_or(|tokens| age < tokens));
            if is_seen { 0.0 } else { f64::NEG_INFINITY }
        });
        bias = add(Some(bias), seen)?;
    }
    let out = attend(ctx.op, &q, [&k, &v], Some(&bias))?;
    Ok(vec![Array::F(merge(&out)?), Array::F(k), Array::F(v)])
}

fn dim(shape: Option<&Shape>, axis: usize) -> Dim {
    shape.and_then(|s| s.get(axis)).cloned().unwrap_or(Dim::Unknown)
}

/// A dim divided by a count, where it is known.
fn part(dim: &Dim, count: usize) -> Dim {
    dim.known()
        .filter(|n| n.is_multiple_of(count as u64))
        .map_or(Dim::Unknown, |n| Dim::Known(n / count as u64))
}

/// The cache after the call: `[batch, heads, past + time, head_dim]`.
fn present(ctx: &InferContext<'_>, past: usize, new: [Dim; 4]) -> Type {
    let [batch, heads, time, head_dim] = new;
    let whole = match ctx.has(past) {
        true => dim(ctx.shape(past), 2).plus(&time),
        false => time,
    };
    Type::maybe(ctx.dtype(0), Some(vec![batch, heads, whole, head_dim]))
}

fn infer_onnx(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = ctx.dtype(0);
    let Some((q, (k, v))) = ctx.shape(0).zip(ctx.shape(1).zip(ctx.shape(2))) else {
        return Ok(vec![Type::maybe(dtype, None); 3]);
    };
    let by_head = |s: &Shape, heads: &str| -> Result<[Dim; 4], String> {
        match s.as_slice() {
            [b, h, t, d] => Ok([b.clone(), h.clone(), t.clone(), d.clone()]),
            [b, t, hidden] => {
                let n = self::heads(ctx.op, heads)?;
                Ok([b.clone(), Dim::Known(n as u64), t.clone(), part(hidden, n)])
            }
            _ => Err(format!("rank {} is neither 3 nor 4", s.len())),
        }
    };
    let (query, key, value) =
        (by_head(q, "q_num_heads")?, by_head(k, "kv_num_heads")?, by_head(v, "kv_num_heads")?);
    let [batch, q_heads, time, _] = query;
    let out = match q.len() {
        3 => vec![batch, time, q_heads.times(&value[3])],
        _ => vec![batch, q_heads, time, value[3].clone()],
    };
    Ok(vec![Type::maybe(dtype, Some(out)), present(ctx, 4, key), present(ctx, 5, value)])
}

fn infer_packed(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let columns = dim(ctx.shape(1), 1);
    let width = match columns.known() {
        Some(n) => Dim::Known(packed_sizes(ctx.op, n)?[2] as u64),
        None => Dim::Unknown,
    };
    let out = vec![dim(ctx.shape(0), 0), dim(ctx.shape(0), 1), width];
    Ok(vec![Type::maybe(ctx.dtype(0), Some(out)), Type::default()])
}

fn infer_multi_head(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let n = heads(ctx.op, "num_heads")?;
    let at = |slot: usize, axis: usize| dim(ctx.shape(slot), axis);
    let is_by_head = |slot: usize| ctx.shape(slot).is_some_and(|shape| shape.len() == 4);
    let width = if is_by_head(2) { Dim::Known(n as u64).times(&at(2, 3)) } else { at(2, 2) };
    let new = |slot: usize| match is_by_head(slot) {
        true => [0, 1, 2, 3].map(|axis| at(slot, axis)),
        false => [at(0, 0), Dim::Known(n as u64), at(slot, 1), part(&at(slot, 2), n)],
    };
    let out = vec![at(0, 0), at(0, 1), width];
    Ok(vec![Type::maybe(ctx.dtype(0), Some(out)), present(ctx, 6, new(1)), present(ctx, 7, new(2))])
}

fn infer_grouped(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let (q_heads, kv_heads) = (heads(ctx.op, "num_heads")?, heads(ctx.op, "kv_num_heads")?);
    let at = |axis: usize| dim(ctx.shape(0), axis);
    let packed = !(ctx.has(1) && ctx.has(2));
    let head_dim = part(&at(2), if packed { q_heads + 2 * kv_heads } else { q_heads });
    let out = vec![at(0), at(1), Dim::Known(q_heads as u64).times(&head_dim)];
    let new = || [at(0), Dim::Known(kv_heads as u64), at(1), head_dim.clone()];
    Ok(vec![Type::maybe(ctx.dtype(0), Some(out)), present(ctx, 3, new()), present(ctx, 4, new())])
}
