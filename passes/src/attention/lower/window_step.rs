//! The window of one token per row, which is never padding: it is written into its slot, and read with all that the ring
//! then holds.

use super::window::{CLOSED, Kept, Near, Ring, Seen, log_sum, row};
use super::{Dims, HeadOrder};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::Local;

pub(super) fn lower(p: &mut Patch<'_>, near: &Near, local: Local, d: Dims) -> Seen {
    let slot = slot(p, near.ring.count, local);
    let [keys, values] = near.ring.kept.apart(p, d.kv_heads);
    let [keys, values] = [(keys, near.k), (values, near.v)]
        .map(|(ring, new)| p.node(Op::new("TensorScatter"), &[ring, new, slot]));
    let count = p.add_scalar(near.ring.count, 1.0);
    let head_dim = p.known_dim(near.q, 3) as i64;
    let q = p.reshape(near.q, &[0, d.kv_heads, d.group(), head_dim]);
    let q = near.factor.scaled(p, q);
    let transposed = p.transpose(keys, &[0, 1, 3, 2]);
    let scores = p.matmul(q, transposed);
    let scores = near.factor.capped(p, scores);
    let dtype = p.dtype(scores);
    let closed = closed(p, count, local, dtype);
    let scores = p.add(scores, closed);
    let probabilities = p.softmax(scores, -1);
    let mixed = p.matmul(probabilities, values);
    let read = p.reshape(mixed, &[0, d.heads, 1, d.value_dim]);
    let log_sum = near.sums.then(|| {
        let log_sum = log_sum(p, scores);
        p.reshape(log_sum, &[0, d.heads, 1, 1])
    });
    let ring = Ring { kept: Kept::Apart([keys, values]), count: after(p, near.ring.count, count, local) };
    Seen { read, log_sum, order: HeadOrder::HeadMajor, ring }
}

/// Where the next token goes, i64 `[batch]`. A count as it is kept passes the end of the ring by less than a window.
pub(super) fn slot(p: &mut Patch<'_>, count: ValueId, local: Local) -> ValueId {
    let slots = p.scalar_like(count, local.slots() as f64);
    let is_first = p.node(Op::new("Less"), &[count, slots]);
    let again = p.add_scalar(count, -f64::from(local.window));
    let slot = p.select(is_first, count, again);
    let slot = p.squeeze(slot, &[1]);
    p.cast(slot, DType::I64)
}

/// [`wrapped`](super::window::wrapped) of the count after one more token.
fn after(p: &mut Patch<'_>, before: ValueId, count: ValueId, local: Local) -> ValueId {
    let slots = local.slots() as f64;
    let last = p.scalar_like(before, slots + f64::from(local.window) - 1.0);
    let goes_on = p.node(Op::new("Less"), &[before, last]);
    let first = p.scalar_like(before, slots);
    p.select(goes_on, count, first)
}

/// What is added to the score of each slot, `[batch, 1, 1, slots]`: nothing where it is filled. A slot is filled first by
/// the token whose count is its place.
fn closed(p: &mut Patch<'_>, count: ValueId, local: Local, dtype: DType) -> ValueId {
    let first = row(p, 1..=local.slots() as u32);
    let is_held = p.less_or_equal(first, count);
    let (open, closed) = (p.scalar_like(count, 0.0), p.scalar_like(count, -CLOSED));
    let added = p.select(is_held, open, closed);
    let added = p.cast(added, dtype);
    p.unsqueeze(added, &[1, 2])
}
