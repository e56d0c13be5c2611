//! Softmax over near tokens and sinks, by counts of real tokens ([`dijiang_format::recipe::Local`]), with a ring of as many
//! keys and values as its state.
//!
//! A ring has a slot for each sink and W more: the token with count n lies in slot n - 1 where n ≤ s, and else in slot
//! s + (n - s - 1) mod W. Its order means nothing to softmax, and what is in no slot is masked.

use super::{Dims, Form, HeadOrder, window_band, window_step};
use crate::attention::site::AttentionSite;
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::Local;

/// A count that no token reaches: of what is not there. Counts are f32, which every runtime computes with, and exact below
/// 2²⁴ tokens of one call.
pub(super) const NOWHERE: f64 = (1u64 << 40) as f64;

/// What the window reads.
#[derive(Debug, Clone, Copy)]
pub struct Near {
    /// `[batch, heads, sequence, head_dim]`
    pub q: ValueId,
    /// `[batch, kv_heads, sequence, head_dim]`
    pub k: ValueId,
    /// `[batch, kv_heads, sequence, value_dim]`
    pub v: ValueId,
    pub factor: Factor,
    /// 1 for a token and 0 for padding, f32 `[batch, sequence]`; none where there is no padding
    pub valid: Option<ValueId>,
    pub ring: Ring,
    /// Whether the sum that divides is wanted.
    pub sums: bool,
}

/// What becomes of a product before the mask: it is multiplied, and then capped where there is a cap.
#[derive(Debug, Clone, Copy)]
pub struct Factor {
    pub scale: f64,
    pub softcap: Option<f64>,
}

impl Factor {
    pub(crate) fn of(site: &AttentionSite) -> Self {
        Self { scale: site.scale, softcap: site.softcap }
    }

    /// Queries multiplied, for [`Self::capped`] after the product.
    pub(super) fn scaled(self, p: &mut Patch<'_>, q: ValueId) -> ValueId {
        p.scale_by(q, self.scale)
    }

    /// c · tanh(x / c)
    pub(super) fn capped(self, p: &mut Patch<'_>, scores: ValueId) -> ValueId {
        let Some(cap) = self.softcap else { return scores };
        let part = p.scale_by(scores, cap.recip());
        let bent = p.tanh(part);
        p.scale_by(bent, cap)
    }
}

/// The last keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    pub kept: Kept,
    /// How many tokens there were, f32 `[batch, 1]`; beyond what fills the ring only where it stands matters, and what is
    /// kept is less than a window more ([`wrapped`]).
    pub count: ValueId,
}

/// Keys and values, as a ring has them.
#[derive(Debug, Clone, Copy)]
pub enum Kept<T = ValueId> {
    /// Keys `[batch, kv_heads, slots, head_dim]`, and values `[batch, kv_heads, slots, value_dim]`.
    Apart([T; 2]),
    /// The keys of a head and then its values, `[batch, 2 · kv_heads, slots, head_dim]`: what is done to both is one
    /// operator.
    Stacked(T),
}

impl<T> Kept<T> {
    pub(super) fn map<U>(self, mut each: impl FnMut(T) -> U) -> Kept<U> {
        match self {
            Self::Apart(both) => Kept::Apart(both.map(each)),
            Self::Stacked(both) => Kept::Stacked(each(both)),
        }
    }
}

impl Kept {
    /// Keys and values.
    pub(crate) fn apart(self, p: &mut Patch<'_>, kv_heads: i64) -> [ValueId; 2] {
        match self {
            Self::Apart(both) => both,
            Self::Stacked(both) => {
                let (slots, width) = (p.known_dim(both, 2) as i64, p.known_dim(both, 3) as i64);
                let shape = p.ints(&[0, kv_heads, 2, slots, width]);
                unstacked(p, both, shape)
            }
        }
    }
}

/// Keys and values of what [`Kept::Stacked`] stacks, once it has `shape`, `[batch, kv_heads, 2, …]`.
pub(super) fn unstacked(p: &mut Patch<'_>, both: ValueId, shape: ValueId) -> [ValueId; 2] {
    let both = p.reshape_to(both, shape);
    let parts = p.split(both, 2, &[1, 1]);
    [parts[0], parts[1]].map(|part| p.squeeze(part, &[2]))
}

/// What each query reads, and the ring afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub read: ValueId,
    /// log Σ exp of the scores, f32, last axis 1; where it [was wanted](Near::sums)
    pub log_sum: Option<ValueId>,
    pub order: HeadOrder,
    pub ring: Ring,
}

pub(crate) fn lower(p: &mut Patch<'_>, form: Form, near: &Near, local: Local, dims: Dims) -> Seen {
    match form {
        Form::OneToken(_) => window_step::lower(p, near, local, dims),
        Form::Parallel => by_counts(p, near, local, dims),
        Form::Chunked(_) | Form::Segment(_) | Form::Operator(_) => window_band::lower(p, near, local, dims),
    }
}

/// Every query with every key, masked: the plainest, and quadratic.
fn by_counts(p: &mut Patch<'_>, near: &Near, local: Local, dims: Dims) -> Seen {
    let counts = Counts::new(p, near, local);
    let [old_keys, old_values] = near.ring.kept.apart(p, dims.kv_heads);
    let [keys, values] =
        [(old_keys, near.k), (old_values, near.v)].map(|(old, new)| p.concat(&[old, new], 2));
    let seen = seen(p, &counts, local);
    let scores = scores(p, (near.q, near.factor), keys, seen, dims);
    let log_sum = near.sums.then(|| {
        let log_sum = log_sum(p, scores);
        p.reshape(log_sum, &[0, dims.heads, -1, 1])
    });
    let read = weighted(p, scores, values, dims);
    let all = Kept::Apart([(keys, dims.kv_heads), (values, dims.kv_heads)]);
    let ring = ring_after(p, near, all, (&counts, local));
    Seen { read, log_sum, order: HeadOrder::HeadMajor, ring }
}

/// The ring that a call leaves of what it found and brought, `slots + sequence` rows of so many heads.
pub(super) fn ring_after(
    p: &mut Patch<'_>,
    near: &Near,
    all: Kept<(ValueId, i64)>,
    (counts, local): (&Counts, Local),
) -> Ring {
    let rows = rows_after(p, near, counts, local);
    let (batch, time) = (p.shape_of(near.k, 0, 1), p.shape_of(near.k, 2, 3));
    let height = p.add_scalar(time, local.slots() as f64);
    let kept = all.map(|(all, heads)| {
        let rows = rows_of_heads(p, rows, (batch, heads), height);
        taken(p, all, rows, (heads, local))
    });
    Ring { kept, count: wrapped(p, counts.after, local) }
}

/// Counts of tokens, f32.
pub(super) struct Counts {
    /// Of each token, `[batch, sequence]`; on padding that of the token before, or one that no token has.
    pub(super) tokens: ValueId,
    /// The same with [`NOWHERE`] on padding.
    pub(super) marked: ValueId,
    /// What each slot holds before the call, [`NOWHERE`] where it holds nothing, `[batch, slots]`.
    pub(super) slots: ValueId,
    /// After the call, `[batch, 1]`.
    pub(super) after: ValueId,
}

impl Counts {
    /// Of each token, `[batch, sequence]`, with padding wherever it stands.
    pub(super) fn of_tokens(p: &mut Patch<'_>, near: &Near) -> ValueId {
        let new = match near.valid {
            Some(valid) => p.cumsum(valid, 1, false),
            None => Self::places(p, near),
        };
        p.add(near.ring.count, new)
    }

    /// 1, 2, …, f32 `[sequence]`.
    fn places(p: &mut Patch<'_>, near: &Near) -> ValueId {
        let time = p.shape_of(near.k, 2, 3);
        let count = p.squeeze(time, &[0]);
        let place = p.range(count);
        let place = p.cast(place, DType::F32);
        p.add_scalar(place, 1.0)
    }

    /// With padding wherever it stands.
    fn new(p: &mut Patch<'_>, near: &Near, local: Local) -> Self {
        let Some(valid) = near.valid else { return Self::in_order(p, near, None, local) };
        let (before, slots) = (near.ring.count, Self::of_slots(p, near, local));
        let tokens = Self::of_tokens(p, near);
        let half = p.scalar_like(valid, 0.5);
        let is_token = p.greater(valid, half);
        let total = p.reduce("ReduceSum", valid, &[1], true);
        Self { tokens, marked: nowhere_unless(p, is_token, tokens), slots, after: p.add(before, total) }
    }

    /// Of tokens that stand one after the other, and before all padding: so many, `[batch, 1]`, or all.
    pub(super) fn in_order(p: &mut Patch<'_>, near: &Near, total: Option<ValueId>, local: Local) -> Self {
        let (before, slots) = (near.ring.count, Self::of_slots(p, near, local));
        let place = Self::places(p, near);
        let tokens = p.add(before, place);
        let Some(total) = total else {
            let time = p.shape_of(near.k, 2, 3);
            let time = p.cast(time, DType::F32);
            return Self { tokens, marked: tokens, slots, after: p.add(before, time) };
        };
        let after = p.add(before, total);
        let is_token = p.less_or_equal(tokens, after);
        Self { tokens, marked: nowhere_unless(p, is_token, tokens), slots, after }
    }

    fn of_slots(p: &mut Patch<'_>, near: &Near, local: Local) -> ValueId {
        let slots = slot_counts(p, near.ring.count, local);
        held(p, slots, near.ring.count, local)
    }
}

fn nowhere_unless(p: &mut Patch<'_>, is_there: ValueId, counts: ValueId) -> ValueId {
    let nowhere = p.constant("nowhere", Tensor::scalar(DType::F32, NOWHERE));
    p.select(is_there, counts, nowhere)
}

/// x mod w, not negative.
pub(super) fn modulo(p: &mut Patch<'_>, x: ValueId, w: u32) -> ValueId {
    let by = p.scalar_like(x, f64::from(w));
    let times = p.div(x, by);
    let times = p.node(Op::new("Floor"), &[times]);
    let whole = p.mul(times, by);
    p.sub(x, whole)
}

/// A row of counts, f32 `[n]`.
pub(super) fn row(p: &mut Patch<'_>, counts: impl Iterator<Item = u32>) -> ValueId {
    let counts: Vec<f32> = counts.map(|count| count as f32).collect();
    p.constant("counts", Tensor::from_f32(&[counts.len() as u64], &counts))
}

/// The count that belongs to each slot once `count` tokens have come, `[batch, slots]`: s + 1 or less and below zero where
/// there is none yet.
fn slot_counts(p: &mut Patch<'_>, count: ValueId, local: Local) -> ValueId {
    let Local { window, sinks } = local;
    // Counts of the first time that each slot is filled.
    let first = row(p, (sinks + 1..).take(window as usize));
    let since = p.sub(count, first);
    let age = modulo(p, since, window);
    let near = p.sub(count, age);
    if sinks == 0 {
        return near;
    }
    let width = p.ints(&[i64::from(sinks)]);
    let sinks = row(p, 1..=sinks);
    let lead = p.shape_of(count, 0, 1);
    let shape = p.concat(&[lead, width], 0);
    let sinks = p.expand(sinks, shape);
    p.concat(&[sinks, near], 1)
}

/// [`slot_counts`] with [`NOWHERE`] where a slot holds nothing.
fn held(p: &mut Patch<'_>, slots: ValueId, count: ValueId, local: Local) -> ValueId {
    let Local { window, sinks } = local;
    let least = row(p, (0..sinks + window).map(|slot| slot.min(sinks) + 1));
    let came = p.less_or_equal(slots, count);
    let is_there = p.less_or_equal(least, slots);
    let is_held = p.and(came, is_there);
    nowhere_unless(p, is_held, slots)
}

/// The count as it is kept: one as large as it needs to be, that stands at the same place of the ring.
pub(super) fn wrapped(p: &mut Patch<'_>, count: ValueId, local: Local) -> ValueId {
    let behind = p.add_scalar(count, -f64::from(local.sinks));
    let within = modulo(p, behind, local.window);
    let within = p.add_scalar(within, local.slots() as f64);
    p.min(count, within)
}

/// Softmax over the keys that are seen, bool `[batch or 1, sequence, keys]`.
pub(crate) fn read_seen(
    p: &mut Patch<'_>,
    q: (ValueId, Factor),
    [keys, values]: [ValueId; 2],
    seen: ValueId,
    d: Dims,
) -> ValueId {
    let scores = scores(p, q, keys, seen, d);
    weighted(p, scores, values, d)
}

/// What is made of q kᵀ where a key is seen, `[batch, kv_heads, group, sequence, keys]`.
fn scores(
    p: &mut Patch<'_>,
    (q, factor): (ValueId, Factor),
    keys: ValueId,
    seen: ValueId,
    d: Dims,
) -> ValueId {
    let head_dim = p.known_dim(q, 3) as i64;
    let q = p.reshape(q, &[0, d.kv_heads, d.group(), -1, head_dim]);
    let transposed = p.transpose(keys, &[0, 1, 3, 2]);
    let transposed = p.unsqueeze(transposed, &[2]);
    let q = factor.scaled(p, q);
    let scores = p.matmul(q, transposed);
    let scores = factor.capped(p, scores);
    let seen = p.unsqueeze(seen, &[1, 2]);
    let closed = p.scalar_like(scores, -CLOSED);
    p.select(seen, scores, closed)
}

/// The values by the softmax of their scores, `[batch, heads, sequence, value_dim]`.
fn weighted(p: &mut Patch<'_>, scores: ValueId, values: ValueId, d: Dims) -> ValueId {
    let values = p.unsqueeze(values, &[2]);
    let probabilities = p.softmax(scores, -1);
    let mixed = p.matmul(probabilities, values);
    p.reshape(mixed, &[0, d.heads, -1, d.value_dim])
}

/// log Σ exp over the last axis, f32: of numbers up to the largest of them, which is taken out.
pub(super) fn log_sum(p: &mut Patch<'_>, scores: ValueId) -> ValueId {
    let scores = p.cast(scores, DType::F32);
    let most = p.reduce("ReduceMax", scores, &[-1], true);
    let below = p.sub(scores, most);
    let powers = p.exp(below);
    let sum = p.reduce("ReduceSum", powers, &[-1], true);
    let log = p.log(sum);
    p.add(most, log)
}

/// In the range of f16; what is masked is then still nothing beside a score that is not.
pub(super) const CLOSED: f64 = 6e4;

/// Whether a query sees a key, bool `[batch, sequence, slots + sequence]`.
fn seen(p: &mut Patch<'_>, counts: &Counts, local: Local) -> ValueId {
    let keys = p.concat(&[counts.slots, counts.marked], 1);
    let (query, key) = (p.unsqueeze(counts.tokens, &[2]), p.unsqueeze(keys, &[1]));
    let earlier = p.less_or_equal(key, query);
    let age = p.sub(query, key);
    let window = p.scalar_like(age, f64::from(local.window));
    let near = p.node(Op::new("Less"), &[age, window]);
    let sinks = p.scalar_like(key, f64::from(local.sinks));
    let is_sink = p.less_or_equal(key, sinks);
    let stays = p.node(Op::new("Or"), &[near, is_sink]);
    p.and(earlier, stays)
}

/// Which of `[slots + sequence]` rows each slot holds after the call, i64 `[batch, slots]`.
fn rows_after(p: &mut Patch<'_>, near: &Near, counts: &Counts, local: Local) -> ValueId {
    let slots = local.slots() as i64;
    let wanted = slot_counts(p, counts.after, local);
    let wanted = held(p, wanted, counts.after, local);
    // What none of the slots held and is a token of the call.
    let is_new = p.greater(wanted, near.ring.count);
    let wanted_new = p.less_or_equal(wanted, counts.after);
    let is_new = p.and(is_new, wanted_new);
    let place = place_of(p, near, counts, wanted);
    let place = p.add_scalar(place, slots as f64);
    let stay = row(p, 0..slots as u32);
    let row = p.select(is_new, place, stay);
    p.cast(row, DType::I64)
}

/// Rows `[batch, n]` of each of `heads` blocks of `width` rows, counted over all: i64 `[batch, heads, n]`.
pub(super) fn rows_of_heads(
    p: &mut Patch<'_>,
    rows: ValueId,
    (batch, heads): (ValueId, i64),
    width: ValueId,
) -> ValueId {
    let heads = p.ints(&[heads]);
    let blocks = p.mul(batch, heads);
    let blocks = p.squeeze(blocks, &[0]);
    let first = p.range(blocks);
    let first = p.mul(first, width);
    let one = p.ints(&[1]);
    let shape = p.concat(&[batch, heads, one], 0);
    let first = p.reshape_to(first, shape);
    let rows = p.unsqueeze(rows, &[1]);
    p.add(first, rows)
}

/// What lies in slots `[batch, n]` of a ring, `[batch, kv_heads, n, width]`.
pub(super) fn in_ring(p: &mut Patch<'_>, ring: ValueId, slots: ValueId, heads: i64) -> ValueId {
    let (batch, width) = (p.shape_of(ring, 0, 1), p.shape_of(ring, 2, 3));
    let rows = rows_of_heads(p, slots, (batch, heads), width);
    let last = p.known_dim(ring, 3) as i64;
    let flat = p.reshape(ring, &[-1, last]);
    p.gather(flat, rows, 0)
}

/// Where the token with a count stands in the call, `[batch, slots]`; anything where it is none of its tokens.
fn place_of(p: &mut Patch<'_>, near: &Near, counts: &Counts, wanted: ValueId) -> ValueId {
    let Some(valid) = near.valid else {
        let after = p.sub(wanted, near.ring.count);
        return p.add_scalar(after, -1.0);
    };
    let (wanted, marked) = (p.unsqueeze(wanted, &[2]), p.unsqueeze(counts.marked, &[1]));
    let same = p.equal(wanted, marked);
    let same = p.cast(same, DType::F32);
    let time = p.shape_of(valid, 1, 2);
    let time = p.squeeze(time, &[0]);
    let places = p.range(time);
    let places = p.cast(places, DType::F32);
    let places = p.mul(same, places);
    p.reduce("ReduceSum", places, &[2], false)
}

/// Rows of `[batch, heads, slots + sequence, width]`: `[batch, heads, slots, width]`.
fn taken(p: &mut Patch<'_>, all: ValueId, rows: ValueId, (heads, local): (i64, Local)) -> ValueId {
    let width = p.known_dim(all, 3) as i64;
    let flat = p.reshape(all, &[-1, width]);
    let taken = p.gather(flat, rows, 0);
    p.reshape(taken, &[0, heads, local.slots() as i64, width])
}
