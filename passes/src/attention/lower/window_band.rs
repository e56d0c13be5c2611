//! The window in blocks of as many tokens as it sees: a block of queries is multiplied with its own keys, with those of the
//! block before it, and with the sinks. The ring stands before the first block, in any order.
//!
//! Tokens are brought together first where there is padding, as it may stand between them, so that what is near by counts is
//! near by place.

use super::grid::Grid;
use super::window::{CLOSED, Counts, Kept, Near, Seen, log_sum, ring_after, rows_of_heads, unstacked};
use super::{Dims, HeadOrder};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::TOGETHER;
use dijiang_format::recipe::Local;

pub(super) fn lower(p: &mut Patch<'_>, near: &Near, local: Local, d: Dims) -> Seen {
    let order = near.valid.map(|valid| Order::new(p, valid));
    let order = order.as_ref();
    let total = order.map(|order| order.total);
    let parts = parts(p, near, d);
    let (near, parts) = match order {
        Some(order) => (order.queries_together(p, near, d), parts.map(|part| part.together(p, order))),
        None => (*near, parts),
    };
    let counts = Counts::in_order(p, &near, total, local);
    let band = Band::new(p, &near, local);
    let [keys, values] = band.keys_and_values(p, parts, d);
    let scores = band.scores(p, &near, keys, (&counts, d));
    let log_sum = near.sums.then(|| {
        let log_sum = log_sum(p, scores);
        band.grid.join(p, log_sum, d.heads, 1)
    });
    let read = band.read(p, scores, values, d);
    let all = parts.map(|part| (part.joined(p), part.heads));
    let ring = ring_after(p, &near, all, (&counts, local));
    let read = order.map_or(read, |order| order.read_apart(p, read, d.heads, d.value_dim));
    let log_sum = log_sum.map(|x| order.map_or(x, |order| order.read_apart(p, x, d.heads, 1)));
    Seen { read, log_sum, order: HeadOrder::TokenMajor, ring }
}

/// Rows of keys, of values, or of both.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// `[batch, heads, slots, ·]`
    ring: ValueId,
    /// `[batch, heads, sequence, ·]`
    new: ValueId,
    heads: i64,
}

impl Part {
    fn together(self, p: &mut Patch<'_>, order: &Order) -> Self {
        Self { new: order.together(p, self.new, self.heads), ..self }
    }

    fn joined(self, p: &mut Patch<'_>) -> ValueId {
        p.concat(&[self.ring, self.new], 2)
    }
}

/// The keys and values of a window, laid as its ring keeps them.
fn parts(p: &mut Patch<'_>, near: &Near, d: Dims) -> Kept<Part> {
    let heads = d.kv_heads;
    match near.ring.kept {
        Kept::Apart([keys, values]) => {
            Kept::Apart([(keys, near.k), (values, near.v)].map(|(ring, new)| Part { ring, new, heads }))
        }
        Kept::Stacked(ring) => {
            let both = p.concat(&[near.k, near.v], 2);
            let new = p.reshape(both, &[0, 2 * heads, -1, d.value_dim]);
            Kept::Stacked(Part { ring, new, heads: 2 * heads })
        }
    }
}

/// The tokens of each row before its padding.
pub(super) struct Order {
    /// Where each token goes, i64 `[batch, sequence]`.
    places: ValueId,
    /// Where what stands at each place comes from, i64 `[batch, sequence]`.
    sources: ValueId,
    /// How many tokens there are, f32 `[batch, 1]`.
    total: ValueId,
}

impl Order {
    pub(super) fn new(p: &mut Patch<'_>, valid: ValueId) -> Self {
        let total = p.reduce("ReduceSum", valid, &[1], true);
        let one = p.scalar_like(valid, 1.0);
        let padding = p.sub(one, valid);
        let [tokens, pads] = [valid, padding].map(|marks| p.cumsum(marks, 1, false));
        let pads = p.add(total, pads);
        let half = p.scalar_like(valid, 0.5);
        let is_token = p.greater(valid, half);
        let counts = p.select(is_token, tokens, pads);
        let places = p.add_scalar(counts, -1.0);
        let places = p.cast(places, DType::I64);
        let time = p.shape_of(valid, 1, 2);
        let time = p.squeeze(time, &[0]);
        let row = p.range(time);
        let shape = p.shape_of(valid, 0, 2);
        let row = p.expand(row, shape);
        let sources = p.node(Op::new("ScatterElements").with("axis", 1), &[row, places, row]);
        Self { places, sources, total }
    }

    /// Keys and values are brought together as [`parts`]: of those that stay in what this returns the length alone is read.
    fn queries_together(&self, p: &mut Patch<'_>, near: &Near, d: Dims) -> Near {
        Near { q: self.together(p, near.q, d.heads), valid: None, ..*near }
    }

    /// `[batch, heads, sequence, ·]` with the tokens before the padding.
    pub(super) fn together(&self, p: &mut Patch<'_>, x: ValueId, heads: i64) -> ValueId {
        moved(p, x, self.sources, heads)
    }

    /// The other way round.
    pub(super) fn apart(&self, p: &mut Patch<'_>, x: ValueId, heads: i64) -> ValueId {
        moved(p, x, self.places, heads)
    }

    /// `[batch, sequence, heads, width]` in the order of the call.
    fn read_apart(&self, p: &mut Patch<'_>, read: ValueId, heads: i64, width: i64) -> ValueId {
        let (batch, time) = (p.shape_of(read, 0, 1), p.shape_of(read, 1, 2));
        let rows = rows_of_heads(p, self.places, (batch, 1), time);
        let rows = p.squeeze(rows, &[1]);
        let flat = p.reshape(read, &[-1, heads * width]);
        let rows = p.within(TOGETHER, |p| p.gather(flat, rows, 0));
        p.reshape(rows, &[0, 0, heads, width])
    }
}

/// `[batch, heads, sequence, ·]` with the token at each place that `from` says, i64 `[batch, sequence]`.
fn moved(p: &mut Patch<'_>, x: ValueId, from: ValueId, heads: i64) -> ValueId {
    let (batch, time, width) = (p.shape_of(x, 0, 1), p.shape_of(x, 2, 3), p.known_dim(x, 3) as i64);
    let rows = rows_of_heads(p, from, (batch, heads), time);
    let flat = p.reshape(x, &[-1, width]);
    p.within(TOGETHER, |p| p.gather(flat, rows, 0))
}

/// How a sequence is cut: into blocks of W tokens, or into one that is shorter.
struct Band {
    grid: Grid,
    local: Local,
    batch: ValueId,
    /// The tokens of all blocks but the last, `[1]`.
    earlier: ValueId,
    /// How many of the first tokens may be sinks that a query sees past its window, `[1]`.
    sinks: ValueId,
    /// How many keys a block may see, `[1]`.
    width: ValueId,
}

impl Band {
    fn new(p: &mut Patch<'_>, near: &Near, local: Local) -> Self {
        let (time, one, zero) = (p.shape_of(near.k, 2, 3), p.ints(&[1]), p.ints(&[0]));
        let grid = Grid::up_to(p, near.k, local.window);
        let blocks = p.sub(grid.count, one);
        let earlier = p.mul(blocks, grid.chunk);
        let window = p.ints(&[i64::from(local.window)]);
        let past = p.sub(time, window);
        let past = p.max(past, zero);
        let own = p.ints(&[i64::from(local.sinks)]);
        let sinks = p.min(past, own);
        let near_by = p.add(window, grid.chunk);
        let far = p.add(own, sinks);
        let width = p.add(near_by, far);
        Self { grid, local, batch: p.shape_of(near.k, 0, 1), earlier, sinks, width }
    }

    /// What each block may see of both, `[batch, kv_heads, blocks, width, ·]`.
    fn keys_and_values(&self, p: &mut Patch<'_>, parts: Kept<Part>, d: Dims) -> [ValueId; 2] {
        match parts.map(|part| self.visible(p, part)) {
            Kept::Apart(both) => both,
            Kept::Stacked(both) => {
                let (lead, last) = (p.ints(&[0, d.kv_heads, 2]), p.ints(&[d.value_dim]));
                let shape = p.concat(&[lead, self.grid.count, self.width, last], 0);
                unstacked(p, both, shape)
            }
        }
    }

    /// What is made of q kᵀ where a key is seen, `[batch, kv_heads, blocks, group, block, width]`.
    fn scores(&self, p: &mut Patch<'_>, near: &Near, keys: ValueId, (counts, d): (&Counts, Dims)) -> ValueId {
        let head_dim = p.known_dim(near.q, 3) as i64;
        let q = near.factor.scaled(p, near.q);
        let q = self.grid.queries(p, q, Dims { features: head_dim, ..d });
        let transposed = p.transpose(keys, &[0, 1, 2, 4, 3]);
        let scores = p.matmul(q, transposed);
        let scores = near.factor.capped(p, scores);
        let scores = self.grid.by_head(p, scores, d, self.width);
        let seen = self.seen(p, counts);
        let seen = p.unsqueeze(seen, &[3]);
        let closed = p.scalar_like(scores, -CLOSED);
        p.select(seen, scores, closed)
    }

    /// The values by the softmax of their scores, `[batch, sequence, heads, value_dim]`.
    fn read(&self, p: &mut Patch<'_>, scores: ValueId, values: ValueId, d: Dims) -> ValueId {
        let probabilities = p.softmax(scores, -1);
        let probabilities = self.grid.by_row(p, probabilities, d, self.width);
        let mixed = p.matmul(probabilities, values);
        let last = p.ints(&[d.value_dim]);
        let mixed = self.grid.by_head(p, mixed, d, last);
        self.grid.join(p, mixed, d.heads, d.value_dim)
    }

    /// What each block may see: `[batch, heads, blocks, W + block + sinks, ·]`.
    fn visible(&self, p: &mut Patch<'_>, Part { ring, new, heads }: Part) -> ValueId {
        let features = p.known_dim(new, 3) as i64;
        let sinks = i64::from(self.local.sinks);
        let last = p.slice(ring, 2, sinks, i64::MAX);
        let near = self.beside(p, last, new, (heads, &[features]));
        if sinks == 0 {
            return near;
        }
        let (first, start) = (p.slice(ring, 2, 0, sinks), p.ints(&[0]));
        let new = p.slice_to(new, 2, start, self.sinks);
        let far = p.concat(&[first, new], 2);
        let (held, features) = (p.ints(&[sinks]), p.ints(&[features]));
        let (heads, count) = (p.ints(&[heads]), p.add(held, self.sinks));
        let shape = p.concat(&[self.batch, heads, self.grid.count, count, features], 0);
        let far = p.unsqueeze(far, &[2]);
        let far = p.wider_than_bf16(far, |p, far| p.expand(far, shape));
        p.concat(&[near, far], 3)
    }

    /// The block before each block and itself, of `last` `[batch, heads, W, tail…]`, which stands before the first, and
    /// `new` `[batch, heads, sequence, tail…]`: `[batch, heads, blocks, W + block, tail…]`.
    fn beside(
        &self,
        p: &mut Patch<'_>,
        last: ValueId,
        new: ValueId,
        (heads, tail): (i64, &[i64]),
    ) -> ValueId {
        let padded = self.grid.pad(p, new, tail.len());
        let own = self.grid.blocks(p, padded, &[heads], tail);
        let start = p.ints(&[0]);
        let before = p.slice_to(padded, 2, start, self.earlier);
        let before = p.concat(&[last, before], 2);
        let mut shape = vec![p.ints(&[0, heads]), self.grid.count, p.ints(&[i64::from(self.local.window)])];
        if !tail.is_empty() {
            shape.push(p.ints(tail));
        }
        let shape = p.concat(&shape, 0);
        let before = p.reshape_to(before, shape);
        p.concat(&[before, own], 3)
    }

    /// Whether a query sees a key, bool `[batch, 1, blocks, block, W + block + sinks]`.
    fn seen(&self, p: &mut Patch<'_>, counts: &Counts) -> ValueId {
        let [tokens, marked, slots] =
            [counts.tokens, counts.marked, counts.slots].map(|counts| p.unsqueeze(counts, &[1]));
        let query = self.grid.cut(p, tokens, &[1], &[]);
        let query = p.unsqueeze(query, &[4]);
        let sinks = i64::from(self.local.sinks);
        let last = p.slice(slots, 2, sinks, i64::MAX);
        let key = self.beside(p, last, marked, (1, &[]));
        let key = p.unsqueeze(key, &[3]);
        let age = p.sub(query, key);
        let window = p.scalar_like(age, f64::from(self.local.window));
        let is_near = p.node(Op::new("Less"), &[age, window]);
        let near = came(p, [key, query], is_near);
        if sinks == 0 {
            return near;
        }
        let first = p.slice(slots, 2, 0, sinks);
        let first = p.unsqueeze(first, &[2, 3]);
        let held = p.less_or_equal(first, query);
        let new = self.new_sinks(p, marked, query, window);
        p.concat(&[near, held, new], 4)
    }

    /// Of the sinks that the call brings, those that have left the window, `[batch, 1, blocks, block, sinks]`.
    fn new_sinks(&self, p: &mut Patch<'_>, marked: ValueId, query: ValueId, window: ValueId) -> ValueId {
        let start = p.ints(&[0]);
        let key = p.slice_to(marked, 2, start, self.sinks);
        let key = p.unsqueeze(key, &[2, 3]);
        let age = p.sub(query, key);
        let is_far = p.less_or_equal(window, age);
        let sinks = p.constant("sinks", Tensor::scalar(DType::F32, f64::from(self.local.sinks)));
        let is_sink = p.less_or_equal(key, sinks);
        p.and(is_far, is_sink)
    }
}

/// `also`, of keys that came before a query or with it. Behind the sequence there are none, and counts of 0.
fn came(p: &mut Patch<'_>, [key, query]: [ValueId; 2], also: ValueId) -> ValueId {
    let none = p.scalar_like(key, 0.0);
    let is_there = p.greater(key, none);
    let is_earlier = p.less_or_equal(key, query);
    let came = p.and(is_there, is_earlier);
    p.and(came, also)
}
