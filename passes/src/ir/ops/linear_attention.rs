//! `LinearAttention`, of `com.microsoft` and of `ai.onnx` (opset 27): the recurrence
//! S_t = exp(g_t) S_{t-1} + k_t ⊗ w_t, o_t = scale · q_tᵀ S_t, with w_t = v_t under the update rules `linear` and `gated`,
//! and w_t = β_t (v_t - exp(g_t) S_{t-1}ᵀ k_t) under `delta` and `gated_delta`.

use super::unpacked;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::Dim;
use ndarray::{Array4, IxDyn, s};

const ATTRS: &[(&str, AttrSpec)] = &[
    ("q_num_heads", AttrSpec::RequiredInt),
    ("kv_num_heads", AttrSpec::RequiredInt),
    ("update_rule", AttrSpec::Str("gated_delta")),
    ("scale", AttrSpec::Float(0.0)),
    ("chunk_size", AttrSpec::Int(64)),
];

pub(super) const OPS: &[OpSpec] = &[row(""), row("com.microsoft")];

const fn row(domain: &'static str) -> OpSpec {
    OpSpec { domain, name: "LinearAttention", inputs: 3..=6, outputs: 1..=2, attrs: ATTRS, infer, eval }
}

/// Query heads, and key/value heads.
fn heads(op: &Op) -> Result<(usize, usize), String> {
    let get = |name: &str| op.int(name).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let (q, kv) = get("q_num_heads").zip(get("kv_num_heads")).ok_or("a head count is not positive")?;
    if q % kv != 0 {
        return Err(format!("{q} query heads do not share {kv} key/value heads"));
    }
    Ok((q, kv))
}

fn infer(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let (q_heads, kv_heads) = heads(ctx.op)?;
    let dtype = ctx.dtype(0);
    let per_head = |i: usize, heads: usize| -> Result<Dim, String> {
        match ctx.shape(i) {
            None => Ok(Dim::Unknown),
            Some(shape) if shape.len() != 3 => {
                Err(format!("input {i} is not packed [batch, sequence, heads * dim]"))
            }
            Some(shape) => match shape[2] {
                Dim::Known(n) if n % heads as u64 != 0 => {
                    Err(format!("{n} of input {i} do not divide by {heads} heads"))
                }
                Dim::Known(n) => Ok(Dim::Known(n / heads as u64)),
                _ => Ok(Dim::Unknown),
            },
        }
    };
    let d_k = per_head(0, q_heads)?.meet(&per_head(1, kv_heads)?);
    let d_v = per_head(2, kv_heads)?;
    let at = |axis: usize| ctx.shape(0).map_or(Dim::Unknown, |s| s[axis].clone());
    let out = Type::maybe(dtype, Some(vec![at(0), at(1), d_v.times(&Dim::Known(q_heads as u64))]));
    let state = ctx.dtype(3).or(dtype);
    let state = Type::maybe(state, Some(vec![at(0), Dim::Known(kv_heads as u64), d_k, d_v]));
    Ok(vec![out, state][..ctx.outputs].to_vec())
}

fn eval(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let (q_heads, kv_heads) = heads(ctx.op)?;
    let rule = ctx.op.str("update_rule").unwrap_or_default();
    let (gated, delta) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        _ => return Err(format!("update rule `{rule}` is not known")),
    };
    let (q, k, v) =
        (unpacked(ctx.f(0)?, q_heads)?, unpacked(ctx.f(1)?, kv_heads)?, unpacked(ctx.f(2)?, kv_heads)?);
    let (batch, time, _, d_k) = q.dim();
    let d_v = v.dim().3;
    let scale = match ctx.op.float("scale") {
        Some(s) if s != 0.0 => f64::from(s),
        _ => (d_k as f64).sqrt().recip(),
    };
    let decay = if gated { Some(unpacked(ctx.f(4)?, kv_heads)?) } else { None };
    let beta = if delta { Some(unpacked(ctx.f(5)?, kv_heads)?) } else { None };
    let mut state = match ctx.has(3) {
        true => ctx.f(3)?.clone().into_dimensionality().map_err(|e| e.to_string())?,
        false => Array4::zeros((batch, kv_heads, d_k, d_v)),
    };
    let mut out = Array4::zeros((batch, time, q_heads, d_v));
    for b in 0..batch {
        for t in 0..time {
            for h in 0..kv_heads {
                let keep =
                    |i: usize| decay.as_ref().map_or(1.0, |g| g[[b, t, h, i.min(g.dim().3 - 1)]].exp());
                for j in 0..d_v {
                    (0..d_k).for_each(|i| state[[b, h, i, j]] *= keep(i));
                    let written = beta.as_ref().map_or(v[[b, t, h, j]], |beta| {
                        let kept: f64 = (0..d_k).map(|i| state[[b, h, i, j]] * k[[b, t, h, i]]).sum();
                        beta[[b, t, h, 0]] * (v[[b, t, h, j]] - kept)
                    });
                    (0..d_k).for_each(|i| state[[b, h, i, j]] += k[[b, t, h, i]] * written);
                }
            }
            for h in 0..q_heads {
                let s = state.slice(s![b, h * kv_heads / q_heads, .., ..]);
                let o = q.slice(s![b, t, h, ..]).dot(&s) * scale;
                out.slice_mut(s![b, t, h, ..]).assign(&o);
            }
        }
    }
    let packed =
        out.into_shape_with_order(IxDyn(&[batch, time, q_heads * d_v])).map_err(|e| e.to_string())?;
    Ok(vec![Array::F(packed), Array::F(state.into_dyn())])
}
