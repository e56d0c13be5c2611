//! The chunked form for segments of a prompt on a device: the same sums, in as few and as narrow passes over memory as
//! there are operators for.
//!
//! Heads come first, `[kv_heads, batch, chunks, chunk, ·]`, so that weights per head multiply the rows of all of a
//! batch, and triangles are cut out of what was computed. A segment is whole chunks, or less than one.
//!
//! *In half precision* (features that sum to one): a row's numerator and denominator are its own to scale. Those of
//! chunk n are scaled by σ_n = M / (M + mass_n), where mass_n, the sum of what φ(k) has added before it, is known from
//! the decays alone. What is summed over tokens then stays below a few hundred values. The state stays f32, and adds
//! what a segment brings, rounded once.

use super::ones::{ONES, joined, width, with_ones};
use super::{Dims, HeadOrder, Lowered, Recurrence, RecurrentState, Sums};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

/// Rows of zeros after the given state and what chunks add, so that rows are multiples of 8, as chunks mostly are.
const UNUSED: i64 = 7;
/// M, in tokens.
const MASS: f64 = 64.0;
/// A factor on φ(q) that keeps small sums away from the smallest f16.
const GAIN: f64 = 16.0;

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence, size: u32) -> Lowered {
    let grid = Grid::new(p, r, size);
    let q = grid.queries(p, r.q);
    let k = grid.cut(p, r.k, &[r.dims.features]);
    let transposed = p.transpose(k, &[0, 1, 2, 4, 3]);
    let v = values(p, &grid, r);
    let valid = r.valid.map(|valid| grid.valid(p, valid));
    let log = r.log_decay.map(|log| Logs::new(p, &grid, log));

    let at_end = weights_at_end(p, log.as_ref(), valid);
    let added = weighed(p, &grid, v, at_end);
    let added = p.matmul(transposed, added);
    let carried = carry(p, &grid, r, Added { sums: added, at_end }, log.as_ref());

    let here = match (valid, carried.scale) {
        (Some(valid), Some(scale)) => Some(p.mul(valid, scale)),
        (None, Some(scale)) => Some(grid.spread(p, scale, &[grid.chunk])),
        (valid, None) => valid,
    };
    let here = weighed(p, &grid, v, here);
    let kept = inside_chunks(p, &grid, q, transposed, log.as_ref());
    let new = p.matmul(kept, here);
    let old = p.matmul(q, carried.before);
    let old = gained(p, old);
    let old = log.as_ref().map_or(old, |log| decayed(p, &grid, old, log));
    let sums = p.add(new, old);
    let sums = grid.by_head(p, sums, Last::Known(grid.width()));
    let (num, den) = match r.dims.divides {
        true => {
            let parts = p.split(sums, -1, &[r.dims.value_dim, ONES]);
            (parts[0], Some(p.slice(parts[1], -1, 0, 1)))
        }
        false => (sums, None),
    };
    Lowered {
        sums: Sums {
            num: grid.join(p, num, r.dims.value_dim),
            den: den.map(|den| grid.join(p, den, 1)),
            order: HeadOrder::TokenMajor,
        },
        state: state(p, carried.after, r.dims),
    }
}

/// How a segment is cut: C = min(T, size) and N = T / C.
struct Grid {
    dims: Dims,
    /// `[1]` each
    batch: ValueId,
    time: ValueId,
    chunk: ValueId,
    count: ValueId,
}

/// The size of a last axis.
#[derive(Clone, Copy)]
enum Last {
    Known(i64),
    Chunk,
}

impl Grid {
    fn new(p: &mut Patch<'_>, r: &Recurrence, size: u32) -> Self {
        let (batch, time) = (p.shape_of(r.k, 1, 2), p.shape_of(r.k, 2, 3));
        let (one, size) = (p.ints(&[1]), p.ints(&[i64::from(size)]));
        // An empty sequence still needs a chunk length to divide by.
        let at_least_one = p.max(time, one);
        let chunk = p.min(at_least_one, size);
        let count = p.div(time, chunk);
        Self { dims: r.dims, batch, time, chunk, count }
    }

    fn width(&self) -> i64 {
        width(self.dims)
    }

    fn last(&self, p: &mut Patch<'_>, last: Last) -> ValueId {
        match last {
            Last::Known(size) => p.ints(&[size]),
            Last::Chunk => self.chunk,
        }
    }

    fn shape(&self, p: &mut Patch<'_>, tail: &[ValueId]) -> ValueId {
        let lead = [p.ints(&[self.dims.kv_heads]), self.batch, self.count];
        p.concat(&[&lead, tail].concat(), 0)
    }

    /// `[kv_heads, batch, sequence, tail…]` → `[kv_heads, batch, chunks, chunk, tail…]`
    fn cut(&self, p: &mut Patch<'_>, x: ValueId, tail: &[i64]) -> ValueId {
        let tail = (!tail.is_empty()).then(|| p.ints(tail));
        let tail: Vec<ValueId> = [self.chunk].into_iter().chain(tail).collect();
        let shape = self.shape(p, &tail);
        p.reshape_to(x, shape)
    }

    /// `[batch, sequence]` → `[kv_heads, batch, chunks, chunk]`
    fn valid(&self, p: &mut Patch<'_>, valid: ValueId) -> ValueId {
        let shape = [p.ints(&[1]), self.batch, self.count, self.chunk];
        let shape = p.concat(&shape, 0);
        let cut = p.reshape_to(valid, shape);
        self.spread(p, cut, &[self.chunk])
    }

    /// The same number everywhere, or for all heads: f32 `[kv_heads, batch, chunks, tail…]`
    fn spread(&self, p: &mut Patch<'_>, x: ValueId, tail: &[ValueId]) -> ValueId {
        let shape = self.shape(p, tail);
        p.expand(x, shape)
    }

    /// Which tokens j of a chunk token i sees: bool `[chunk, chunk]`
    fn seen(&self, p: &mut Patch<'_>) -> ValueId {
        let count = p.squeeze(self.chunk, &[0]);
        let place = p.range(count);
        let (row, column) = (p.unsqueeze(place, &[1]), p.unsqueeze(place, &[0]));
        p.node(Op::new("GreaterOrEqual"), &[row, column])
    }

    /// φ(q) `[heads, batch, sequence, m]` → `[kv_heads, batch, chunks, group · chunk, m]`
    fn queries(&self, p: &mut Patch<'_>, q: ValueId) -> ValueId {
        if self.dims.group() == 1 {
            return self.cut(p, q, &[self.dims.features]);
        }
        let lead = p.ints(&[self.dims.kv_heads, self.dims.group()]);
        let last = p.ints(&[self.dims.features]);
        let by_group = p.concat(&[lead, self.batch, self.count, self.chunk, last], 0);
        let by_group = p.reshape_to(q, by_group);
        let transposed = p.transpose(by_group, &[0, 2, 3, 1, 4, 5]);
        self.by_row(p, transposed, Last::Known(self.dims.features))
    }

    /// `[kv_heads, batch, chunks, group, chunk, last]` → `[kv_heads, batch, chunks, group · chunk, last]`
    fn by_row(&self, p: &mut Patch<'_>, x: ValueId, last: Last) -> ValueId {
        let group = p.ints(&[self.dims.group()]);
        let rows = p.mul(self.chunk, group);
        let last = self.last(p, last);
        let shape = self.shape(p, &[rows, last]);
        p.reshape_to(x, shape)
    }

    /// The other way round.
    fn by_head(&self, p: &mut Patch<'_>, x: ValueId, last: Last) -> ValueId {
        let group = p.ints(&[self.dims.group()]);
        let last = self.last(p, last);
        let shape = self.shape(p, &[group, self.chunk, last]);
        p.reshape_to(x, shape)
    }

    /// `[kv_heads, batch, chunks, group, chunk, width]` → `[batch, sequence, heads, width]`
    fn join(&self, p: &mut Patch<'_>, x: ValueId, width: i64) -> ValueId {
        let transposed = p.transpose(x, &[1, 2, 4, 0, 3, 5]);
        let tail = p.ints(&[self.dims.heads, width]);
        let shape = p.concat(&[self.batch, self.time, tail], 0);
        p.reshape_to(transposed, shape)
    }
}

/// v with its ones, `[kv_heads · batch · sequence, width]`, in the type of the features.
fn values(p: &mut Patch<'_>, grid: &Grid, r: &Recurrence) -> ValueId {
    let dtype = p.dtype(r.q);
    let transposed = p.transpose(r.v, &[1, 0, 2, 3]);
    let v = p.cast(transposed, dtype);
    let v = with_ones(p, v, r.dims);
    p.reshape(v, &[-1, grid.width()])
}

/// Rows times their weights `[kv_heads, batch, chunks, chunk]`, cut as those are.
fn weighed(p: &mut Patch<'_>, grid: &Grid, rows: ValueId, weights: Option<ValueId>) -> ValueId {
    let weighed = weights.map_or(rows, |weights| times(p, rows, weights));
    grid.cut(p, weighed, &[grid.width()])
}

/// Rows `[rows, ·]` times weights of as many numbers. A device is twice as fast at it where rows are one axis.
fn times(p: &mut Patch<'_>, rows: ValueId, weights: ValueId) -> ValueId {
    let dtype = p.dtype(rows);
    let narrow = p.cast(weights, dtype);
    let weights = p.reshape(narrow, &[-1, 1]);
    p.mul(rows, weights)
}

/// Cumulative log decays, f32.
struct Logs {
    /// Inside each chunk, its own token included: `[kv_heads, batch, chunks, chunk]`
    inside: ValueId,
    /// Of each whole chunk: `[kv_heads, batch, chunks]`
    whole: ValueId,
}

impl Logs {
    fn new(p: &mut Patch<'_>, grid: &Grid, log: ValueId) -> Self {
        let transposed = p.transpose(log, &[1, 0, 2]);
        let cut = grid.cut(p, transposed, &[]);
        Self { inside: p.cumsum(cut, 3, false), whole: p.reduce("ReduceSum", cut, &[3], false) }
    }
}

/// What is left of each token at the end of its chunk, `[kv_heads, batch, chunks, chunk]`.
fn weights_at_end(p: &mut Patch<'_>, log: Option<&Logs>, valid: Option<ValueId>) -> Option<ValueId> {
    let Some(log) = log else { return valid };
    let end = p.unsqueeze(log.whole, &[3]);
    let left = p.sub(end, log.inside);
    let decay = p.exp(left);
    Some(valid.map_or(decay, |valid| p.mul(decay, valid)))
}

/// What the state before each chunk gives, `[kv_heads, batch, chunks, group · chunk, ·]`, as it is left at each token.
fn decayed(p: &mut Patch<'_>, grid: &Grid, old: ValueId, log: &Logs) -> ValueId {
    let decay = p.exp(log.inside);
    let dtype = p.dtype(old);
    let mut decay = p.cast(decay, dtype);
    if grid.dims.group() > 1 {
        let group = p.ints(&[grid.dims.group()]);
        let rows = p.unsqueeze(decay, &[3]);
        decay = grid.spread(p, rows, &[group, grid.chunk]);
    }
    let rows = p.reshape(old, &[-1, grid.width()]);
    let left = times(p, rows, decay);
    let like = p.shape_of(old, 0, 5);
    p.reshape_to(left, like)
}

/// exp(row - column), which is a decay on and below the diagonal only, and might be infinite above.
fn decay_between(p: &mut Patch<'_>, row: ValueId, column: ValueId, dtype: DType) -> ValueId {
    let between = p.sub(row, column);
    let between = p.cast(between, dtype);
    p.exp(between)
}

/// What stands above a diagonal becomes zero, whatever it was.
fn lower_part(p: &mut Patch<'_>, x: ValueId) -> ValueId {
    p.node(Op::new("Trilu").with("upper", 0), &[x])
}

/// φ(q_i)·φ(k_j) exp(L_i - L_j) for j ≤ i in the same chunk, `[kv_heads, batch, chunks, group · chunk, chunk]`.
fn inside_chunks(
    p: &mut Patch<'_>,
    grid: &Grid,
    q: ValueId,
    transposed: ValueId,
    log: Option<&Logs>,
) -> ValueId {
    let products = p.matmul(q, transposed);
    let products = gained(p, products);
    let mut products = grid.by_head(p, products, Last::Chunk);
    if let Some(log) = log {
        let (row, column) = (p.unsqueeze(log.inside, &[4]), p.unsqueeze(log.inside, &[3]));
        let dtype = p.dtype(q);
        let decay = decay_between(p, row, column, dtype);
        let decay = p.unsqueeze(decay, &[3]);
        products = p.mul(products, decay);
    }
    // Not `Trilu`, for which a device takes longer where it is as much as this.
    let (seen, dtype) = (grid.seen(p), p.dtype(products));
    let none = p.constant("zero", Tensor::scalar(dtype, 0.0));
    let kept = p.select(seen, products, none);
    grid.by_row(p, kept, Last::Chunk)
}

fn state(p: &mut Patch<'_>, after: ValueId, d: Dims) -> RecurrentState {
    let transposed = p.transpose(after, &[1, 0, 2, 3]);
    if !d.divides {
        return RecurrentState { s: transposed, z: None };
    }
    let z = p.slice(transposed, -1, d.value_dim, d.value_dim + 1);
    RecurrentState { s: p.slice(transposed, -1, 0, d.value_dim), z: Some(p.squeeze(z, &[-1])) }
}

/// The states with their normalisers before each chunk, `[kv_heads, batch, chunks, m, width]`, in half
/// precision times the scales σ_n, f32 `[kv_heads, batch, chunks, 1]`; and the state after the last, f32.
struct Carried {
    before: ValueId,
    scale: Option<ValueId>,
    after: ValueId,
}

/// What the tokens of each chunk add to the state after it.
#[derive(Clone, Copy)]
struct Added {
    sums: ValueId,
    /// The weight of each token there; none where all are one.
    at_end: Option<ValueId>,
}

/// The state before chunk n is exp(E_n) S_0 + Σ_{c<n} exp(E_n - I_c) U_c, with E_n the decay before chunk n, I_c the decay
/// after chunk c and U_c what it adds: one product of `[chunks, 1 + chunks]` with all that is added.
fn carry(p: &mut Patch<'_>, grid: &Grid, r: &Recurrence, added: Added, log: Option<&Logs>) -> Carried {
    let Added { sums: added, at_end } = added;
    let dtype = p.dtype(added);
    let whole = match log {
        Some(log) => log.whole,
        None => {
            let zero = p.constant("zero", Tensor::scalar(DType::F32, 0.0));
            grid.spread(p, zero, &[])
        }
    };
    let inclusive = p.cumsum(whole, 2, false);
    let exclusive = p.sub(inclusive, whole);
    let start = joined(p, r.state);
    let start = p.transpose(start, &[1, 0, 2, 3]);
    let masses = r.state.z.filter(|_| is_half(dtype)).map(|z| Masses::new(p, grid, z, at_end));

    let first = match &masses {
        Some(masses) => p.log(masses.start_scale),
        None => p.slice(exclusive, 2, 0, 1),
    };
    let columns = p.concat(&[first, inclusive], 2);
    let (row, column) = (p.unsqueeze(exclusive, &[3]), p.unsqueeze(columns, &[2]));
    let mixing = decay_between(p, row, column, DType::F32);
    let mut mixing = lower_part(p, mixing);
    let scale = masses.as_ref().map(|masses| masses.scale(p, mixing));
    if let Some(scale) = scale {
        mixing = p.mul(mixing, scale);
    }
    let mixing = p.cast(mixing, dtype);
    let none = p.constant("zero", Tensor::scalar(dtype, 0.0));
    let unused = p.ints(&[UNUSED]);
    let unused_columns = grid.shape(p, &[unused]);
    let unused_columns = p.expand(none, unused_columns);
    let mixing = p.concat(&[mixing, unused_columns], 3);

    let rows = r.dims.features * grid.width();
    let first = masses.as_ref().map_or(start, |masses| {
        let scale = p.unsqueeze(masses.start_scale, &[3]);
        p.mul(start, scale)
    });
    let first = p.cast(first, dtype);
    let first = p.reshape(first, &[r.dims.kv_heads, -1, 1, rows]);
    let last = p.ints(&[rows]);
    let flat = grid.shape(p, &[last]);
    let flat = p.reshape_to(added, flat);
    let rows = p.ints(&[rows]);
    let kv_heads = p.ints(&[r.dims.kv_heads]);
    let unused_rows = p.concat(&[kv_heads, grid.batch, unused, rows], 0);
    let unused_rows = p.expand(none, unused_rows);
    let all = p.concat(&[first, flat, unused_rows], 2);
    let before = p.matmul(mixing, all);
    let tail = p.ints(&[r.dims.features, grid.width()]);
    let like = grid.shape(p, &[tail]);
    let before = p.reshape_to(before, like);

    let total = p.slice(inclusive, 2, -1, i64::MAX);
    let new = sum_at_end(p, total, inclusive, flat);
    let new = p.reshape(new, &[r.dims.kv_heads, -1, r.dims.features, grid.width()]);
    let whole = p.exp(total);
    let whole = p.unsqueeze(whole, &[3]);
    let old = p.mul(start, whole);
    Carried { before, scale, after: p.add(new, old) }
}

/// Σ_c exp(total - I_c) U_c, f32 `[kv_heads, batch, 1, ·]`.
fn sum_at_end(p: &mut Patch<'_>, total: ValueId, inclusive: ValueId, added: ValueId) -> ValueId {
    let dtype = p.dtype(added);
    let left = p.sub(total, inclusive);
    let weights = p.exp(left);
    let mut weights = p.unsqueeze(weights, &[2]);
    if is_half(dtype) {
        weights = p.mul_scalar(weights, MASS.recip());
    }
    let weights = p.cast(weights, dtype);
    let sum = p.matmul(weights, added);
    let sum = p.cast(sum, DType::F32);
    if is_half(dtype) { p.mul_scalar(sum, MASS) } else { sum }
}

/// What φ(k) has added up to, f32.
struct Masses {
    /// σ of the given state, `[kv_heads, batch, 1]`
    start_scale: ValueId,
    /// Of the given state, scaled, and of what each chunk adds: `[kv_heads, batch, 1, 1 + chunks]`
    added: ValueId,
}

impl Masses {
    fn new(p: &mut Patch<'_>, grid: &Grid, z: ValueId, at_end: Option<ValueId>) -> Self {
        let given = p.reduce("ReduceSum", z, &[2], true);
        let given = p.transpose(given, &[1, 0, 2]);
        let start_scale = scale_for(p, given);
        let given = p.mul(given, start_scale);
        let weights = at_end.unwrap_or_else(|| {
            let one = p.constant("one", Tensor::scalar(DType::F32, 1.0));
            grid.spread(p, one, &[grid.chunk])
        });
        let chunks = p.reduce("ReduceSum", weights, &[3], false);
        let added = p.concat(&[given, chunks], 2);
        Self { start_scale, added: p.unsqueeze(added, &[2]) }
    }

    /// σ_n, `[kv_heads, batch, chunks, 1]`
    fn scale(&self, p: &mut Patch<'_>, mixing: ValueId) -> ValueId {
        let before = p.mul(mixing, self.added);
        let before = p.reduce("ReduceSum", before, &[3], true);
        scale_for(p, before)
    }
}

/// M / (M + mass)
fn scale_for(p: &mut Patch<'_>, mass: ValueId) -> ValueId {
    let most = p.scalar_like(mass, MASS);
    let sum = p.add(mass, most);
    p.div(most, sum)
}

fn is_half(dtype: DType) -> bool {
    dtype != DType::F32
}

/// Products with φ(q), in half precision times the factor that every sum of a row has.
fn gained(p: &mut Patch<'_>, products: ValueId) -> ValueId {
    match is_half(p.dtype(products)) {
        true => p.mul_scalar(products, GAIN),
        false => products,
    }
}
