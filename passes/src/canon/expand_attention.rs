//! Matches: `Attention` (opset 23), and `Attention` and `MultiHeadAttention` of ONNX Runtime
//! Becomes: softmax(scale · q kᵀ + bias) v in plain operators over `[batch, heads, time, dim]`: the
//! packed projection split, the cache a `Concat`, key/value heads repeated, masks turned into a bias
//! Exact: yes, up to rounding; where a mask may close a whole row, `Where(IsNaN(p), 0, p)` keeps its
//! meaning
//! Declines when: an option is set that the operator table does not evaluate

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::ops::attention::{LOWEST, packed_sizes, scale, softcap, unsupported};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

pub(super) struct ExpandAttention;

impl GraphRule for ExpandAttention {
    fn name(&self) -> &'static str {
        "expand_attention"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match (node.op.domain(), node.op.name()) {
            ("", "Attention") if is_known(node) => onnx(w, node),
            ("com.microsoft", "Attention") if is_known(node) => packed(w, node),
            ("com.microsoft", "MultiHeadAttention") if is_known(node) => multi_head(w, node),
            _ => None,
        })
    }
}

/// Whether every option that is set is one that is evaluated.
pub(super) fn is_known(node: &Node) -> bool {
    unsupported(&node.op, |slot| node.input(slot).is_some(), node.outputs.len()).is_none()
}

/// The parts of one attention, by head.
pub(super) struct Parts {
    pub(super) q: ValueId,
    /// Past and new keys, before they are repeated.
    pub(super) k: ValueId,
    pub(super) v: ValueId,
    pub(super) q_heads: u64,
    pub(super) kv_heads: u64,
    pub(super) scale: f64,
    pub(super) softcap: Option<f64>,
    pub(super) bias: Option<ValueId>,
    /// A row of the bias may close every key.
    pub(super) guarded: bool,
}

pub(super) fn known_dim(w: &Sweep<'_>, value: ValueId, axis: usize) -> Option<u64> {
    w.patch.ty(value).shape.as_ref()?.get(axis)?.known()
}

/// `[batch, heads, time, dim]` of `[batch, time, heads · dim]`.
pub(super) fn split(w: &mut Sweep<'_>, x: ValueId, heads: u64, dim: u64) -> ValueId {
    let split = w.patch.reshape(x, &[0, 0, heads as i64, dim as i64]);
    w.patch.transpose(split, &[0, 2, 1, 3])
}

pub(super) fn merge(w: &mut Sweep<'_>, x: ValueId, hidden: u64) -> ValueId {
    let transposed = w.patch.transpose(x, &[0, 2, 1, 3]);
    w.patch.reshape(transposed, &[0, 0, hidden as i64])
}

pub(super) fn join(w: &mut Sweep<'_>, past: Option<ValueId>, new: ValueId) -> ValueId {
    past.map_or(new, |past| w.patch.concat(&[past, new], 2))
}

fn repeat(w: &mut Sweep<'_>, x: ValueId, [q_heads, kv_heads]: [u64; 2]) -> Option<ValueId> {
    if q_heads == kv_heads {
        return Some(x);
    }
    let dim = known_dim(w, x, 3)?;
    Some(w.patch.repeat_heads(x, [kv_heads, q_heads / kv_heads, dim]))
}

/// The canonical spelling that the patterns look for.
pub(super) fn attend(w: &mut Sweep<'_>, parts: &Parts) -> Option<ValueId> {
    let heads = [parts.q_heads, parts.kv_heads];
    let (k, v) = (repeat(w, parts.k, heads)?, repeat(w, parts.v, heads)?);
    let transposed = w.patch.transpose(k, &[0, 1, 3, 2]);
    let products = w.patch.matmul(parts.q, transposed);
    let mut scores = w.patch.mul_scalar(products, parts.scale);
    if let Some(cap) = parts.softcap {
        let part = w.patch.mul_scalar(scores, cap.recip());
        let bent = w.patch.tanh(part);
        scores = w.patch.mul_scalar(bent, cap);
    }
    if let Some(bias) = parts.bias {
        scores = w.patch.add(scores, bias);
    }
    let mut probabilities = w.patch.softmax(scores, -1);
    if parts.guarded {
        let nothing = w.patch.scalar_like(probabilities, 0.0);
        let empty = w.patch.node(Op::new("IsNaN"), &[probabilities]);
        probabilities = w.patch.select(empty, nothing, probabilities);
    }
    Some(w.patch.matmul(probabilities, v))
}

/// 0 where `open`, `closed` elsewhere, in the type of `like`.
pub(super) fn bias_of(w: &mut Sweep<'_>, open: ValueId, like: ValueId, closed: f64) -> ValueId {
    let (zero, closed) = (w.patch.scalar_like(like, 0.0), w.patch.scalar_like(like, closed));
    w.patch.select(open, zero, closed)
}

pub(super) fn add_bias(w: &mut Sweep<'_>, a: Option<ValueId>, b: ValueId) -> ValueId {
    a.map_or(b, |a| w.patch.add(a, b))
}

/// `[time, total]`: whether query `i`, which stands at `total - time + i`, comes no earlier than key `j`.
pub(super) fn causal(w: &mut Sweep<'_>, q: ValueId, k: ValueId) -> ValueId {
    let (keys, queries) = stand(w, q, k);
    w.patch.less_or_equal(keys, queries)
}

/// `[time, total]`: the same, of the last `tokens` keys alone, the query's own among them.
pub(super) fn window(w: &mut Sweep<'_>, [q, k]: [ValueId; 2], tokens: i64) -> ValueId {
    let (keys, queries) = stand(w, q, k);
    let earlier = w.patch.less_or_equal(keys, queries);
    let left = w.patch.add_scalar(queries, -tokens as f64);
    let near = w.patch.greater(keys, left);
    w.patch.and(earlier, near)
}

/// Where keys stand, `[total]`, and queries, `[time, 1]`.
fn stand(w: &mut Sweep<'_>, q: ValueId, k: ValueId) -> (ValueId, ValueId) {
    let (time, total) = (w.patch.shape_of(q, 2, 3), w.patch.shape_of(k, 2, 3));
    let past = w.patch.sub(total, time);
    let total = w.patch.squeeze(total, &[0]);
    let keys = w.patch.range(total);
    let end = w.patch.ints(&[i64::MAX]);
    let queries = w.patch.slice_to(keys, 0, past, end);
    (keys, w.patch.unsqueeze(queries, &[1]))
}

fn onnx(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let [q, k, v] = [w.input(node, 0)?, w.input(node, 1)?, w.input(node, 2)?];
    let packed = w.patch.ty(q).rank()? == 3;
    let heads = |slot: usize, value: ValueId| -> Option<u64> {
        let name = if slot == 0 { "q_num_heads" } else { "kv_num_heads" };
        if packed { node.op.int(name)?.try_into().ok() } else { known_dim(w, value, 1) }
    };
    let (q_heads, kv_heads) = (heads(0, q)?, heads(1, k)?);
    let width = |value: ValueId, heads: u64| {
        if packed { Some(known_dim(w, value, 2)? / heads.max(1)) } else { known_dim(w, value, 3) }
    };
    let (head_dim, value_dim) = (width(q, q_heads)?, width(v, kv_heads)?);
    let mask = w.input(node, 3);
    if w.patch.ty(q).dtype.is_none() || mask.is_some_and(|m| w.patch.ty(m).dtype.is_none()) {
        return None;
    }
    let [q, k, v] = match packed {
        true => [
            split(w, q, q_heads, head_dim),
            split(w, k, kv_heads, head_dim),
            split(w, v, kv_heads, value_dim),
        ],
        false => [q, k, v],
    };
    let (k, v) = (join(w, w.input(node, 4), k), join(w, w.input(node, 5), v));
    let mut bias = match mask {
        Some(m) if w.patch.ty(m).dtype == Some(DType::Bool) => Some(bias_of(w, m, q, f64::NEG_INFINITY)),
        other => other,
    };
    if node.op.int("is_causal") == Some(1) {
        let open = if node.input(4).is_some() { causal(w, q, k) } else { causal_from_start(w, q, k) };
        let closed = bias_of(w, open, q, f64::NEG_INFINITY);
        bias = Some(add_bias(w, bias, closed));
    }
    let scale = scale(&node.op, head_dim as usize);
    let softcap = softcap(&node.op);
    let parts = Parts { q, k, v, q_heads, kv_heads, scale, softcap, bias, guarded: mask.is_some() };
    let out = attend(w, &parts)?;
    let out = if packed { merge(w, out, q_heads * value_dim) } else { out };
    Some(vec![out, k, v])
}

/// Without a cache query `i` stands at `i`, however many keys there are.
fn causal_from_start(w: &mut Sweep<'_>, q: ValueId, k: ValueId) -> ValueId {
    let range = |w: &mut Sweep<'_>, x: ValueId| {
        let n = w.patch.shape_of(x, 2, 3);
        let n = w.patch.squeeze(n, &[0]);
        w.patch.range(n)
    };
    let (queries, keys) = (range(w, q), range(w, k));
    let queries = w.patch.unsqueeze(queries, &[1]);
    w.patch.less_or_equal(keys, queries)
}

/// ONNX Runtime's mask input as a bias: one number per key, per query and key, or a count of keys.
fn key_bias(w: &mut Sweep<'_>, mask: ValueId, like: [ValueId; 2], closed: f64) -> Option<ValueId> {
    let [q, k] = like;
    let dtype = w.patch.ty(mask).dtype?;
    let zero = w.patch.constant("zero", Tensor::scalar(dtype, 0.0));
    let open = match w.patch.ty(mask).shape.as_deref()? {
        // A vector twice or thrice as long as the batch means something else.
        [batch] if *batch != Dim::Unknown && *batch == w.patch.dim(q, 0) => {
            let total = w.patch.shape_of(k, 2, 3);
            let total = w.patch.squeeze(total, &[0]);
            let keys = w.patch.range(total);
            let keys = w.patch.cast(keys, dtype);
            let counts = w.patch.unsqueeze(mask, &[1, 2, 3]);
            w.patch.greater(counts, keys)
        }
        [_, _] => {
            let open = w.patch.greater(mask, zero);
            w.patch.unsqueeze(open, &[1, 2])
        }
        [_, _, _] => {
            let open = w.patch.greater(mask, zero);
            w.patch.unsqueeze(open, &[1])
        }
        _ => return None,
    };
    Some(bias_of(w, open, q, closed))
}

/// The mask input has a shape of no known meaning.
struct UnknownMask;

/// The mask input, the bias input and `unidirectional`, as one bias.
fn fused_bias(
    w: &mut Sweep<'_>,
    node: &Node,
    [mask, bias]: [usize; 2],
    [q, k]: [ValueId; 2],
) -> Result<Option<ValueId>, UnknownMask> {
    let closed = node.op.float("mask_filter_value").unwrap_or_default().into();
    let mut sum = w.input(node, bias);
    if let Some(mask) = w.input(node, mask) {
        let mask = key_bias(w, mask, [q, k], closed).ok_or(UnknownMask)?;
        sum = Some(add_bias(w, sum, mask));
    }
    if node.op.int("unidirectional") == Some(1) {
        let open = causal(w, q, k);
        let causal = bias_of(w, open, q, LOWEST);
        sum = Some(add_bias(w, sum, causal));
    }
    Ok(sum)
}

fn packed(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let (x, weights) = (w.input(node, 0)?, w.input(node, 1)?);
    let heads: u64 = node.op.int("num_heads")?.try_into().ok().filter(|n| *n > 0)?;
    let sizes = packed_sizes(&node.op, known_dim(w, weights, 1)?).ok()?;
    w.patch.ty(x).dtype?;
    let mut all = w.patch.matmul(x, weights);
    if let Some(bias) = w.input(node, 2) {
        all = w.patch.add(all, bias);
    }
    let parts = w.patch.split(all, -1, &sizes);
    let dims: Vec<u64> = sizes.iter().map(|n| *n as u64 / heads).collect();
    let [q, k, v] = [0, 1, 2].map(|i| split(w, parts[i], heads, dims[i]));
    let bias = fused_bias(w, node, [3, 5], [q, k]).ok()?;
    let scale = scale(&node.op, dims[0] as usize);
    let parts =
        Parts { q, k, v, q_heads: heads, kv_heads: heads, scale, softcap: None, bias, guarded: false };
    let out = attend(w, &parts)?;
    Some(vec![merge(w, out, sizes[2] as u64)])
}

fn multi_head(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let heads: u64 = node.op.int("num_heads")?.try_into().ok().filter(|n| *n > 0)?;
    let inputs = [w.input(node, 0)?, w.input(node, 1)?, w.input(node, 2)?];
    let widths: Vec<u64> = inputs.iter().map(|x| known_dim(w, *x, 2)).collect::<Option<_>>()?;
    w.patch.ty(inputs[0]).dtype?;
    let biases = match w.input(node, 3) {
        Some(bias) => {
            let sizes: Vec<i64> = widths.iter().map(|n| *n as i64).collect();
            w.patch.split(bias, 0, &sizes).into_iter().map(Some).collect()
        }
        None => vec![None; 3],
    };
    let [q, k, v] = [0, 1, 2].map(|i| {
        let x = biases[i].map_or(inputs[i], |b| w.patch.add(inputs[i], b));
        split(w, x, heads, widths[i] / heads)
    });
    let (k, v) = (join(w, w.input(node, 6), k), join(w, w.input(node, 7), v));
    let bias = fused_bias(w, node, [4, 5], [q, k]).ok()?;
    let scale = scale(&node.op, (widths[0] / heads) as usize);
    let parts =
        Parts { q, k, v, q_heads: heads, kv_heads: heads, scale, softcap: None, bias, guarded: false };
    let out = attend(w, &parts)?;
    Some(vec![merge(w, out, widths[2]), k, v])
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_close, check_exact};

    #[test]
    fn attention_of_onnx_is_spelled_out() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %k: f32[batch, 2, time, 8]
  input %past: f32[batch, 2, past, 8]
  input %open: bool[batch, 1, time, total]
  %y, %pk, %pv = Attention(%q, %k, %k, %open, %past, %past) {scale: 0.25}
  %z = Attention(%q, %q, %q) {left_window_size: 2}
  output "y" %y
  output "pk" %pk
  output "pv" %pv
  output "a window stays" %z
}"#
        ));
    }

    #[test]
    fn the_numbers_of_onnx_stay() {
        let text = r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %k: f32[batch, 2, time, 8]
  input %past: f32[batch, 2, past, 8]
  input %bias: f32[batch, 1, time, total]
  input %flat: f32[batch, time, 8]
  const %open: bool[2, 3] = [0, 0, 0, 1, 1, 0]
  %a, %ak, %av = Attention(%q, %k, %k, %bias, %past, %past) {is_causal: 1}
  %b = Attention(%q, %k, %k, %open)
  %c = Attention(%flat, %flat, %flat) {q_num_heads: 2, kv_num_heads: 2, is_causal: 1}
  output "a" %a
  output "ak" %ak
  output "c" %c
}"#;
        let dims: [(&str, &[usize]); 5] = [
            ("q", &[2, 4, 3, 8]),
            ("k", &[2, 2, 3, 8]),
            ("past", &[2, 2, 2, 8]),
            ("bias", &[2, 1, 3, 5]),
            ("flat", &[2, 3, 8]),
        ];
        check_close(text, &dims, 1e-7);
    }

    /// The scores are capped before they are masked.
    #[test]
    fn a_soft_cap_is_spelled_out() {
        let text = r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %bias: f32[batch, 1, time, time]
  %y = Attention(%q, %q, %q, %bias) {softcap: 0.25, is_causal: 1}
  output "y" %y
}"#;
        assert!(after(text).contains("Tanh") && !after(text).contains("= Attention("));
        check_close(text, &[("q", &[2, 4, 3, 8]), ("bias", &[2, 1, 3, 3])], 1e-7);
        assert!(!after(&text.replace("0.25", "0.0")).contains("Tanh"));
    }

    #[test]
    fn a_row_that_sees_nothing_gives_nothing() {
        let text = r#"graph "g" {
  input %q: f32[batch, 4, 2, 8]
  const %open: bool[2, 2] = [0, 0, 1, 1]
  %b = Attention(%q, %q, %q, %open) {scale: 0.5}
  output "b" %b
}"#;
        check_exact(text, &[("q", &[2, 4, 2, 8])]);
    }

    const FUSED: &str = r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %mask: i32[batch, time]
  input %counts: i32[batch]
  weight %w: f32[4, 12] = random(1)
  weight %b: f32[12] = random(2)
  %p = com.microsoft.Attention(%x, %w, %b, %counts) {num_heads: 2}
  %q = com.microsoft.Attention(%x, %w, %b, %mask) {num_heads: 2, unidirectional: 1, scale: 0.25}
  %r = com.microsoft.MultiHeadAttention(%x, %x, %x, %b, %mask) {num_heads: 2}
  output "p" %p
  output "q" %q
  output "r" %r
}"#;

    #[test]
    fn attention_of_onnx_runtime_is_spelled_out() {
        insta::assert_snapshot!(after(FUSED));
    }

    #[test]
    fn the_numbers_of_onnx_runtime_stay() {
        check_close(FUSED, &[("x", &[2, 3, 4]), ("mask", &[2, 3]), ("counts", &[2])], 1e-7);
    }
}
