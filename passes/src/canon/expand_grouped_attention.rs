//! Matches: `GroupQueryAttention` of ONNX Runtime
//! Becomes: softmax attention in plain operators, its rotary embedding spelled out, the cache a
//! `Concat`, and the key counts, causality and window a bias
//! Exact: yes, up to rounding, where the rows of a batch have one past length (ONNX Runtime lets a row
//! that was padded in the prompt write over its padding; a `Concat` cannot)
//! Declines when: an option is set that the operator table does not evaluate

use super::expand_attention::{
    Parts, add_bias, attend, bias_of, causal, is_known, join, known_dim, merge, split, window,
};
use super::expand_rotary::rotate;
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::ops::attention::{LOWEST, local_window, scale, softcap};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct ExpandGroupedAttention;

impl GraphRule for ExpandGroupedAttention {
    fn name(&self) -> &'static str {
        "expand_grouped_attention"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let is_ours = node.op.domain() == "com.microsoft" && node.op.name() == "GroupQueryAttention";
            if is_ours && is_known(node) { expand(w, node) } else { None }
        })
    }
}

struct Heads {
    q: u64,
    kv: u64,
    dim: u64,
}

fn heads(w: &Sweep<'_>, node: &Node) -> Option<Heads> {
    let count = |name: &str| node.op.int(name)?.try_into().ok().filter(|n: &u64| *n > 0);
    let (q, kv) = (count("num_heads")?, count("kv_num_heads")?);
    let width = known_dim(w, w.input(node, 0)?, 2)?;
    let all = if node.input(1).is_some() { q } else { q + 2 * kv };
    width.is_multiple_of(all).then_some(Heads { q, kv, dim: width / all })
}

fn expand(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let heads = heads(w, node)?;
    let counts = w.input(node, 5)?;
    let rotary = node.op.int("do_rotary") == Some(1);
    let cache = if rotary { Some((w.input(node, 7)?, w.input(node, 8)?)) } else { None };
    let width = cache.map_or(Some(0), |(cos, _)| Some(2 * known_dim(w, cos, 1)?))?;
    w.patch.ty(counts).dtype?;
    w.patch.ty(w.input(node, 0)?).dtype?;
    let [mut q, mut k, v] = projections(w, node, &heads)?;
    if let Some((cos, sin)) = cache {
        let place = w.input(node, 9).unwrap_or_else(|| places(w, node, q));
        let interleaved = node.op.int("rotary_interleaved") == Some(1);
        let tables = [cos, sin].map(|table| {
            let rows = w.patch.gather(table, place, 0);
            w.patch.unsqueeze(rows, &[1])
        });
        q = rotate(w, q, tables, [heads.dim, width], interleaved);
        k = rotate(w, k, tables, [heads.dim, width], interleaved);
    }
    let (k, v) = (join(w, w.input(node, 3), k), join(w, w.input(node, 4), v));
    let bias = bias(w, node, counts, [q, k]);
    let scale = scale(&node.op, heads.dim as usize);
    let (q_heads, kv_heads, softcap) = (heads.q, heads.kv, softcap(&node.op));
    let parts = Parts { q, k, v, q_heads, kv_heads, scale, softcap, bias: Some(bias), guarded: false };
    let out = attend(w, &parts)?;
    Some(vec![merge(w, out, heads.q * heads.dim), k, v])
}

/// Queries, keys and values by head, from three inputs or from a packed one.
fn projections(w: &mut Sweep<'_>, node: &Node, heads: &Heads) -> Option<[ValueId; 3]> {
    let x = w.input(node, 0)?;
    let counts = [heads.q, heads.kv, heads.kv];
    let parts = match (w.input(node, 1), w.input(node, 2)) {
        (Some(k), Some(v)) => vec![x, k, v],
        _ => w.patch.split(x, -1, &counts.map(|n| (n * heads.dim) as i64)),
    };
    Some([0, 1, 2].map(|i| split(w, parts[i], counts[i], heads.dim)))
}

/// `[1, time]`: the tokens stand after the past.
fn places(w: &mut Sweep<'_>, node: &Node, q: ValueId) -> ValueId {
    let time = w.patch.shape_of(q, 2, 3);
    let time = w.patch.squeeze(time, &[0]);
    let mut places = w.patch.range(time);
    if let Some(past) = w.input(node, 3) {
        let past = w.patch.shape_of(past, 2, 3);
        places = w.patch.add(places, past);
    }
    w.patch.unsqueeze(places, &[0])
}

/// Key `j` is open where j ≤ `seqlens_k` of its row, and to no earlier query, nor past a window.
fn bias(w: &mut Sweep<'_>, node: &Node, counts: ValueId, [q, k]: [ValueId; 2]) -> ValueId {
    let total = w.patch.shape_of(k, 2, 3);
    let total = w.patch.squeeze(total, &[0]);
    let keys = w.patch.range(total);
    let dtype = w.patch.dtype(counts);
    let keys = w.patch.cast(keys, dtype);
    let counts = w.patch.unsqueeze(counts, &[1, 2, 3]);
    let mut open = w.patch.less_or_equal(keys, counts);
    if node.op.int("causal") == Some(1) {
        let seen = match local_window(&node.op) {
            Some(tokens) => window(w, [q, k], tokens),
            None => causal(w, q, k),
        };
        open = w.patch.and(open, seen);
    }
    let bias = bias_of(w, open, q, LOWEST);
    add_bias(w, w.input(node, 10), bias)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_close};

    const GROUPED: &str = r#"graph "g" {
  input %x: f32[batch, time, 32]
  input %past: f32[batch, 1, past, 8]
  const %counts: i32[2] = [4, 4]
  const %total: i32[] = [5]
  weight %cos: f32[9, 4] = random(1)
  weight %sin: f32[9, 4] = random(2)
  %y, %k, %v = com.microsoft.GroupQueryAttention(%x, _, _, %past, %past, %counts, %total, %cos, %sin) {num_heads: 2, kv_num_heads: 1, do_rotary: 1}
  output "y" %y
  output "k" %k
  output "v" %v
}"#;

    #[test]
    fn grouped_attention_is_spelled_out() {
        insta::assert_snapshot!(after(GROUPED));
    }

    #[test]
    fn the_numbers_stay() {
        check_close(GROUPED, &[("x", &[2, 3, 32]), ("past", &[2, 1, 2, 8])], 1e-7);
    }

    #[test]
    fn a_window_is_spelled_out() {
        let text = GROUPED.replace("do_rotary: 1", "do_rotary: 1, local_window_size: 3");
        assert!(!after(&text).contains("com.microsoft.GroupQueryAttention"));
        for tokens in [1, 2, 3, 5, 100] {
            let text = text.replace("size: 3", &format!("size: {tokens}"));
            check_close(&text, &[("x", &[2, 3, 32]), ("past", &[2, 1, 2, 8])], 1e-7);
        }
    }

    #[test]
    fn a_soft_cap_is_spelled_out() {
        let text = GROUPED.replace("do_rotary: 1", "do_rotary: 1, softcap: 0.25");
        assert!(after(&text).contains("Tanh"));
        check_close(&text, &[("x", &[2, 3, 32]), ("past", &[2, 1, 2, 8])], 1e-7);
        assert!(!after(&text.replace("softcap: 0.25", "softcap: 0.0")).contains("Tanh"));
    }

    /// A window of nothing, one of whatever comes later too, and one that the cache is cut to.
    #[test]
    fn another_window_stays() {
        for options in [
            "local_window_size: 0",
            "local_window_size: 3, causal: 0",
            "local_window_size: 3, sliding_window_cache: 1",
        ] {
            let text = GROUPED.replace("do_rotary: 1", &format!("do_rotary: 1, {options}"));
            assert!(after(&text).contains("com.microsoft.GroupQueryAttention"), "{options}");
        }
    }
}
