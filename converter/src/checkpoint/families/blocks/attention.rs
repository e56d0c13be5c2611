//! Softmax attention with a cache, in the one form that the attention patterns look for.

use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::patch::Patch;

/// The sizes of an attention layer, and what scores are multiplied by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) scale: f64,
    /// c, where a score x becomes c · tanh(x / c).
    pub(crate) softcap: Option<f64>,
}

impl Attention {
    /// Attention with the usual scale, `1 / √head_dim`.
    pub(crate) fn of(meta: &ModelMeta) -> Self {
        let ModelMeta { heads, kv_heads, head_dim, .. } = *meta;
        Self { heads, kv_heads, head_dim, scale: (head_dim as f64).sqrt().recip(), softcap: None }
    }
}

/// `[batch, sequence, heads * dim]` to `[batch, heads, sequence, dim]`
pub(crate) fn split_heads(b: &mut Builder<'_>, x: ValueId, heads: u64, dim: u64) -> ValueId {
    let x = b.p.reshape(x, &[0, 0, heads as i64, dim as i64]);
    heads_first(b, x)
}

/// `[batch, sequence, heads, dim]` to `[batch, heads, sequence, dim]`
pub(crate) fn heads_first(b: &mut Builder<'_>, x: ValueId) -> ValueId {
    b.p.transpose(x, &[0, 2, 1, 3])
}

/// Attention of queries `[batch, heads, sequence, head_dim]` to the cache and to new keys and values
/// `[batch, kv_heads, sequence, head_dim]`, under one of the [`super::mask::Masks`].
/// Returns `[batch, sequence, heads * head_dim]`. Scores become probabilities in f32.
pub(crate) fn attention(
    b: &mut Builder<'_>,
    sizes: &Attention,
    layer: u64,
    [q, k, v]: [ValueId; 3],
    mask: ValueId,
) -> ValueId {
    let k = b.cached(layer, "key", k);
    let v = b.cached(layer, "value", v);
    let k = repeat_heads(b, sizes, k);
    let v = repeat_heads(b, sizes, v);
    let dtype = b.dtype;
    let p = &mut b.p;
    let transposed = p.transpose(k, &[0, 1, 3, 2]);
    let scores = p.matmul(q, transposed);
    // The scale is applied in f32: half precision would round it.
    let scores = p.cast(scores, DType::F32);
    let scores = p.mul_scalar(scores, sizes.scale);
    let scores = sizes.softcap.map_or(scores, |cap| capped(p, scores, cap));
    let scores = p.add(scores, mask);
    let shares = p.softmax(scores, -1);
    let shares = p.cast(shares, dtype);
    let mixed = p.matmul(shares, v);
    let mixed = p.transpose(mixed, &[0, 2, 1, 3]);
    p.reshape(mixed, &[0, 0, (sizes.heads * sizes.head_dim) as i64])
}

/// c · tanh(x / c)
pub(crate) fn capped(p: &mut Patch<'_>, x: ValueId, cap: f64) -> ValueId {
    let part = p.scale_by(x, cap.recip());
    let bent = p.tanh(part);
    p.scale_by(bent, cap)
}

/// Gives every query head its key or value head: `[batch, kv_heads, n, d]` to `[batch, heads, n, d]`.
fn repeat_heads(b: &mut Builder<'_>, sizes: &Attention, x: ValueId) -> ValueId {
    let group = sizes.heads / sizes.kv_heads;
    if group == 1 {
        return x;
    }
    let p = &mut b.p;
    let apart = p.unsqueeze(x, &[2]);
    let shape = p.ints(&[1, 1, group as i64, 1, 1]);
    let repeated = p.expand(apart, shape);
    p.reshape(repeated, &[0, sizes.heads as i64, -1, sizes.head_dim as i64])
}
