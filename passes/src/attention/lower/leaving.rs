//! What leaves a window: with the token of count n that of count n - W, where it is no sink.

use super::window::{Counts, Near, in_ring, modulo, row};
use super::window_band::Order;
use super::{Dims, Form, window_step};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::Local;

/// The tokens that leave with those of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaving {
    /// `[batch, kv_heads, sequence, head_dim]`; anything where none leaves
    pub k: ValueId,
    /// `[batch, kv_heads, sequence, value_dim]`
    pub v: ValueId,
    /// 1 where one leaves, and else 0, f32 `[batch, sequence]`
    pub is_one: ValueId,
}

pub(crate) fn lower(p: &mut Patch<'_>, form: Form, near: &Near, local: Local, d: Dims) -> Leaving {
    match form {
        Form::OneToken(_) => overwritten(p, near, local, d),
        _ => shifted(p, near, local, d),
    }
}

/// Of one token per row: what lies in its slot.
fn overwritten(p: &mut Patch<'_>, near: &Near, local: Local, d: Dims) -> Leaving {
    let slot = window_step::slot(p, near.ring.count, local);
    let slot = p.unsqueeze(slot, &[1]);
    let kept = near.ring.kept.apart(p, d.kv_heads);
    let [k, v] = kept.map(|ring| in_ring(p, ring, slot, d.kv_heads));
    let last = p.scalar_like(near.ring.count, local.slots() as f64);
    let is_full = p.less_or_equal(last, near.ring.count);
    Leaving { k, v, is_one: p.cast(is_full, DType::F32) }
}

/// Of many: what stands W places before each, where those of the ring stand before those of the call.
fn shifted(p: &mut Patch<'_>, near: &Near, local: Local, d: Dims) -> Leaving {
    let order = near.valid.map(|valid| Order::new(p, valid));
    let slots = oldest_first(p, near, local);
    let [keys, values] = near.ring.kept.apart(p, d.kv_heads);
    let [k, v] = [(keys, near.k), (values, near.v)].map(|(ring, new)| {
        let new = order.as_ref().map_or(new, |order| order.together(p, new, d.kv_heads));
        let before = in_ring(p, ring, slots, d.kv_heads);
        let all = p.concat(&[before, new], 2);
        let (start, end) = (p.ints(&[0]), p.shape_of(near.k, 2, 3));
        let shifted = p.slice_to(all, 2, start, end);
        let shape = p.shape_of(new, 0, 4);
        let shifted = p.reshape_to(shifted, shape);
        order.as_ref().map_or(shifted, |order| order.apart(p, shifted, d.kv_heads))
    });
    Leaving { k, v, is_one: leaves(p, near, local) }
}

/// The slots of the last W counts in their order, i64 `[batch, W]`.
fn oldest_first(p: &mut Patch<'_>, near: &Near, local: Local) -> ValueId {
    let places = row(p, 0..local.window);
    let since = p.add(near.ring.count, places);
    let since = p.add_scalar(since, -f64::from(local.sinks));
    let within = modulo(p, since, local.window);
    let slots = p.add_scalar(within, f64::from(local.sinks));
    p.cast(slots, DType::I64)
}

/// Whether a token leaves with each, f32 `[batch, sequence]`.
fn leaves(p: &mut Patch<'_>, near: &Near, local: Local) -> ValueId {
    let counts = Counts::of_tokens(p, near);
    let last = p.scalar_like(counts, local.slots() as f64);
    let leaves = p.node(Op::new("Less"), &[last, counts]);
    let leaves = p.cast(leaves, DType::F32);
    near.valid.map_or(leaves, |valid| p.mul(leaves, valid))
}
