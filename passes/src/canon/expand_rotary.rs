//! Matches: `RotaryEmbedding`, of ONNX and of ONNX Runtime, over `[batch, heads, time, head_dim]`
//! Becomes: x · cos + rotate(x) · sin in plain operators, the rotated part joined with the rest where
//! only some dims are rotated
//! Exact: yes, up to rounding
//! Declines when: the input has rank 3 (heads not on an axis of their own) with no head count, or the
//! options are those of packed batches

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::tensor::Tensor;

pub(super) struct ExpandRotary;

impl GraphRule for ExpandRotary {
    fn name(&self) -> &'static str {
        "expand_rotary"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.name() != "RotaryEmbedding" || node.op.spec().is_none() {
                return None;
            }
            expand(w, node)
        })
    }
}

fn expand(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let x = w.input(node, 0)?;
    let is_microsoft = !node.op.domain().is_empty();
    let slots = if is_microsoft { [2, 3, 1] } else { [1, 2, 3] };
    let (cos, sin) = (w.input(node, slots[0])?, w.input(node, slots[1])?);
    let place = w.input(node, slots[2]);
    let half = w.patch.ty(cos).shape.as_ref()?.last()?.known()?;
    let shape = w.patch.ty(x).shape.clone()?;
    let plain = !is_microsoft
        || (node.op.int("is_packed_batching") == Some(0) && node.op.float("scale") == Some(1.0));
    let placed = place.is_none_or(|p| w.patch.ty(p).rank() == Some(2));
    if !plain || !placed || w.patch.ty(x).dtype.is_none() {
        return None;
    }
    let heads = match node.op.int("num_heads") {
        Some(n) if n > 0 => n,
        // Without a count ONNX Runtime takes the heads to be as wide as what is rotated.
        _ if shape.len() == 3 => (shape[2].known()? / (2 * half).max(1)) as i64,
        _ => 0,
    };
    let head_dim = match shape.as_slice() {
        [_, _, _, d] => d.known()?,
        [_, _, hidden] if heads > 0 => hidden.known()? / heads as u64,
        _ => return None,
    };
    let by_head = if shape.len() == 4 { x } else { split(w, x, heads, head_dim) };
    let [cos, sin] = [cos, sin].map(|cache| rows(w, cache, place));
    let y = rotate(w, by_head, [cos, sin], [head_dim, 2 * half], node.op.int("interleaved") == Some(1));
    Some(vec![if shape.len() == 4 { y } else { merge(w, y, heads * head_dim as i64) }])
}

fn split(w: &mut Sweep<'_>, x: ValueId, heads: i64, head_dim: u64) -> ValueId {
    let split = w.patch.reshape(x, &[0, 0, heads, head_dim as i64]);
    w.patch.transpose(split, &[0, 2, 1, 3])
}

fn merge(w: &mut Sweep<'_>, x: ValueId, hidden: i64) -> ValueId {
    let transposed = w.patch.transpose(x, &[0, 2, 1, 3]);
    w.patch.reshape(transposed, &[0, 0, hidden])
}

/// `[batch, 1, time, half]`: the rows of a cache that the positions name, or the cache itself.
fn rows(w: &mut Sweep<'_>, cache: ValueId, place: Option<ValueId>) -> ValueId {
    let rows = place.map_or(cache, |place| w.patch.gather(cache, place, 0));
    w.patch.unsqueeze(rows, &[1])
}

/// Rotates the leading `width` of `head_dim` dims by half-width cosines and sines.
pub(super) fn rotate(
    w: &mut Sweep<'_>,
    x: ValueId,
    [cos, sin]: [ValueId; 2],
    [head_dim, width]: [u64; 2],
    interleaved: bool,
) -> ValueId {
    let (head_dim, width) = (head_dim as i64, width as i64);
    let part = if width == head_dim { x } else { w.patch.slice(x, 3, 0, width) };
    let rotated = if interleaved {
        rotate_pairs(w, part, [cos, sin], width)
    } else {
        rotate_halves(w, part, [cos, sin], width)
    };
    if width == head_dim {
        return rotated;
    }
    let rest = w.patch.slice(x, 3, width, i64::MAX);
    w.patch.concat(&[rotated, rest], -1)
}

/// Dim i turns with dim i + width/2, as Hugging Face spells it.
fn rotate_halves(w: &mut Sweep<'_>, x: ValueId, tables: [ValueId; 2], width: i64) -> ValueId {
    let [cos, sin] = tables.map(|half| w.patch.concat(&[half, half], -1));
    let (first, second) = (w.patch.slice(x, 3, 0, width / 2), w.patch.slice(x, 3, width / 2, i64::MAX));
    let minus = w.patch.neg(second);
    let swapped = w.patch.concat(&[minus, first], -1);
    let (straight, across) = (w.patch.mul(x, cos), w.patch.mul(swapped, sin));
    w.patch.add(straight, across)
}

/// Dim 2i turns with dim 2i + 1.
fn rotate_pairs(w: &mut Sweep<'_>, x: ValueId, [cos, sin]: [ValueId; 2], width: i64) -> ValueId {
    let [even, odd] = [0, 1].map(|first| {
        let places: Vec<i64> = (first..width).step_by(2).collect();
        let places = w.patch.constant("places", Tensor::from_i64(&[places.len() as u64], &places));
        w.patch.gather(x, places, 3)
    });
    let (a, b) = (w.patch.mul(even, cos), w.patch.mul(odd, sin));
    let first = w.patch.sub(a, b);
    let (a, b) = (w.patch.mul(even, sin), w.patch.mul(odd, cos));
    let second = w.patch.add(a, b);
    let (first, second) = (w.patch.unsqueeze(first, &[-1]), w.patch.unsqueeze(second, &[-1]));
    let pairs = w.patch.concat(&[first, second], -1);
    w.patch.reshape(pairs, &[0, 0, -1, width])
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_close};

    const ROTARY: &str = r#"graph "g" {
  input %x: f32[batch, 2, time, 4]
  input %wide: f32[batch, 2, time, 6]
  input %flat: f32[batch, time, 8]
  input %places: i64[batch, time]
  weight %cos: f32[9, 2] = random(1)
  weight %sin: f32[9, 2] = random(2)
  %p = RotaryEmbedding(%x, %cos, %sin, %places)
  %q = com.microsoft.RotaryEmbedding(%x, %places, %cos, %sin) {interleaved: 1}
  %r = RotaryEmbedding(%wide, %cos, %sin, %places) {rotary_embedding_dim: 4}
  %s = com.microsoft.RotaryEmbedding(%flat, %places, %cos, %sin)
  %t = com.microsoft.RotaryEmbedding(%x, %places, %cos, %sin) {scale: 2.0}
  output "p" %p
  output "q" %q
  output "r" %r
  output "s" %s
  output "scaled stays" %t
}"#;

    #[test]
    fn rotations_are_spelled_out() {
        insta::assert_snapshot!(after(ROTARY));
    }

    #[test]
    fn the_numbers_stay() {
        let known = ROTARY.lines().filter(|l| !l.contains("%t")).collect::<Vec<_>>().join("\n");
        let dims: [(&str, &[usize]); 4] =
            [("x", &[2, 2, 3, 4]), ("wide", &[2, 2, 3, 6]), ("flat", &[2, 3, 8]), ("places", &[2, 3])];
        check_close(&known, &dims, 1e-12);
    }
}
