//! The chunked form: the parallel form inside chunks of C tokens, and across chunks
//! S_n = exp(L_n) S_{n-1} + Σ_j exp(L_n - L_j) φ(k_j) ⊗ v_j, carried by a cumulative sum, or with
//! decay by an [N, N] product of decays.
//!
//! The normaliser is carried with the sum, in columns of [ones](super::ones). The query heads of a key/value head are rows of one product.
//!
//! The sequence is padded to whole chunks with φ(k) = 0 and log a = 0, which changes no state. A sequence shorter than a chunk is one chunk of its own length.

use super::ones::{ONES, joined, width, with_ones};
use super::{Dims, HeadOrder, Lowered, Recurrence, RecurrentState, Sums, lower_triangle};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence, size: u32) -> Lowered {
    let d = r.dims;
    let time = p.shape_of(r.k, 2, 3);
    let grid = Grid::new(p, time, size);
    let q = grid.queries(p, r.q, d);
    // [batch, kv_heads, chunks, chunk, ·]
    let k = grid.cut(p, r.k, &[d.kv_heads], &[d.features]);
    let v = grid.cut(p, r.v, &[d.kv_heads], &[d.value_dim]);
    let v = with_ones(p, v, d);
    let log = r.log_decay.map(|log| Logs::new(p, &grid, log, d.kv_heads));

    let inside = inside_chunks(p, [q, k], &grid, d, log.as_ref());
    let carried = carry(p, r, k, v, log.as_ref());
    let new = p.matmul(inside, v);
    let old = p.matmul(q, carried.before);
    let last = p.ints(&[width(d)]);
    let [new, mut old] = [new, old].map(|sum| grid.by_head(p, sum, d, last));
    if let Some(log) = &log {
        let decay = p.exp(log.inside);
        let decay = p.unsqueeze(decay, &[3, 5]);
        old = p.mul(old, decay);
    }
    let sums = p.add(new, old);
    let (num, den) = apart(p, sums, d);
    let den = den.map(|den| p.reduce("ReduceMean", den, &[-1], true));
    Lowered {
        sums: Sums {
            num: grid.join(p, num, d.heads, d.value_dim),
            den: den.map(|den| grid.join(p, den, d.heads, 1)),
            order: HeadOrder::TokenMajor,
        },
        state: carried.after,
    }
}

/// What belongs to the values, and what to the ones, where there are any.
fn apart(p: &mut Patch<'_>, x: ValueId, d: Dims) -> (ValueId, Option<ValueId>) {
    if !d.divides {
        return (x, None);
    }
    let parts = p.split(x, -1, &[d.value_dim, ONES]);
    (parts[0], Some(parts[1]))
}

/// How a sequence is cut: C = min(T, size), N = ceil(T / C), and what is missing to N·C, where anything may be.
struct Grid {
    /// `[1]` each
    time: ValueId,
    chunk: ValueId,
    count: ValueId,
    missing: ValueId,
}

impl Grid {
    fn new(p: &mut Patch<'_>, time: ValueId, size: u32) -> Self {
        let size = p.ints(&[i64::from(size)]);
        let one = p.ints(&[1]);
        // An empty sequence still needs a chunk length to divide by.
        let at_least_one = p.max(time, one);
        let chunk = p.min(at_least_one, size);
        let up = p.add(time, chunk);
        let up = p.sub(up, one);
        let count = p.div(up, chunk);
        let whole = p.mul(count, chunk);
        Self { time, chunk, count, missing: p.sub(whole, time) }
    }

    /// `[batch, heads, sequence, tail…]` → `[batch, lead…, chunks, chunk, tail…]`
    fn cut(&self, p: &mut Patch<'_>, x: ValueId, lead: &[i64], tail: &[i64]) -> ValueId {
        let padded = self.pad(p, x, tail.len());
        let mut shape = vec![p.ints(&[&[0], lead].concat()), self.count, self.chunk];
        if !tail.is_empty() {
            shape.push(p.ints(tail));
        }
        let shape = p.concat(&shape, 0);
        p.reshape_to(padded, shape)
    }

    /// φ(q) as `[batch, kv_heads, chunks, group · chunk, m]`
    fn queries(&self, p: &mut Patch<'_>, q: ValueId, d: Dims) -> ValueId {
        let cut = self.cut(p, q, &[d.kv_heads, d.group()], &[d.features]);
        let transposed = p.transpose(cut, &[0, 1, 3, 2, 4, 5]);
        let last = p.ints(&[d.features]);
        self.by_row(p, transposed, d, last)
    }

    /// `[batch, kv_heads, chunks, group, chunk, last]` → `[batch, kv_heads, chunks, group · chunk, last]`
    fn by_row(&self, p: &mut Patch<'_>, x: ValueId, d: Dims, last: ValueId) -> ValueId {
        let group = p.ints(&[d.group()]);
        let rows = p.mul(self.chunk, group);
        let shape = [p.ints(&[0, d.kv_heads]), self.count, rows, last];
        let shape = p.concat(&shape, 0);
        p.reshape_to(x, shape)
    }

    /// The other way round.
    fn by_head(&self, p: &mut Patch<'_>, x: ValueId, d: Dims, last: ValueId) -> ValueId {
        let shape = [p.ints(&[0, d.kv_heads]), self.count, p.ints(&[d.group()]), self.chunk, last];
        let shape = p.concat(&shape, 0);
        p.reshape_to(x, shape)
    }

    /// Zeros after the sequence, axis 2.
    fn pad(&self, p: &mut Patch<'_>, x: ValueId, tail: usize) -> ValueId {
        let before = p.ints(&vec![0; 3 + tail + 2]);
        let mut pads = vec![before, self.missing];
        if tail > 0 {
            pads.push(p.ints(&vec![0; tail]));
        }
        let pads = p.concat(&pads, 0);
        let zero = p.constant("zero", Tensor::scalar(DType::F32, 0.0));
        p.node(Op::new("Pad"), &[x, pads, zero])
    }

    /// `[batch, kv_heads, chunks, group, chunk, width]` → `[batch, sequence, heads, width]`, without the padding.
    fn join(&self, p: &mut Patch<'_>, x: ValueId, heads: i64, width: i64) -> ValueId {
        let transposed = p.transpose(x, &[0, 2, 4, 1, 3, 5]);
        let flat = p.reshape(transposed, &[0, -1, heads, width]);
        let start = p.ints(&[0]);
        let joined = p.slice_to(flat, 1, start, self.time);
        // States the length again, which a slice to a computed bound does not.
        let shape = [p.ints(&[0]), self.time, p.ints(&[heads, width])];
        let shape = p.concat(&shape, 0);
        p.reshape_to(joined, shape)
    }
}

/// Cumulative log decays.
struct Logs {
    /// Inside each chunk, its own token included: `[batch, kv_heads, chunks, chunk]`
    inside: ValueId,
    /// Of each whole chunk: `[batch, kv_heads, chunks]`
    whole: ValueId,
}

impl Logs {
    fn new(p: &mut Patch<'_>, grid: &Grid, log: ValueId, kv_heads: i64) -> Self {
        let cut = grid.cut(p, log, &[kv_heads], &[]);
        let inside = p.cumsum(cut, 3, false);
        let whole = p.reduce("ReduceSum", cut, &[3], false);
        Self { inside, whole }
    }
}

/// φ(q_i)·φ(k_j) exp(L_i - L_j) for j ≤ i in the same chunk, `[batch, kv_heads, chunks, group · chunk, chunk]`.
fn inside_chunks(
    p: &mut Patch<'_>,
    [q, k]: [ValueId; 2],
    grid: &Grid,
    d: Dims,
    log: Option<&Logs>,
) -> ValueId {
    let transposed = p.transpose(k, &[0, 1, 2, 4, 3]);
    let products = p.matmul(q, transposed);
    let products = grid.by_head(p, products, d, grid.chunk);
    let size = p.squeeze(grid.chunk, &[0]);
    let decay = match log {
        Some(log) => {
            let (row, column) = (p.unsqueeze(log.inside, &[4]), p.unsqueeze(log.inside, &[3]));
            let decay = decay_between(p, row, column, size, false);
            p.unsqueeze(decay, &[3])
        }
        None => lower_triangle(p, size, false),
    };
    let kept = p.mul(products, decay);
    grid.by_row(p, kept, d, grid.chunk)
}

/// exp(row - column) on and below the diagonal (below it only, if `strict`), and zero above, where the exponent
/// might be too large.
fn decay_between(p: &mut Patch<'_>, row: ValueId, column: ValueId, size: ValueId, strict: bool) -> ValueId {
    const CLOSED: f64 = 1e30;
    let open = lower_triangle(p, size, strict);
    let bias = p.add_scalar(open, -1.0);
    let bias = p.mul_scalar(bias, CLOSED);
    let between = p.sub(row, column);
    let between = p.add(between, bias);
    p.exp(between)
}

/// The states with their normalisers before each chunk, `[batch, kv_heads, chunks, m, width]`, and the
/// state after the last.
struct Carried {
    before: ValueId,
    after: RecurrentState,
}

fn carry(p: &mut Patch<'_>, r: &Recurrence, k: ValueId, v: ValueId, log: Option<&Logs>) -> Carried {
    let at_end = match log {
        Some(log) => {
            let end = p.unsqueeze(log.whole, &[3]);
            let left = p.sub(end, log.inside);
            let decay = p.exp(left);
            let decay = p.unsqueeze(decay, &[4]);
            p.mul(v, decay)
        }
        None => v,
    };
    let transposed = p.transpose(k, &[0, 1, 2, 4, 3]);
    let added = p.matmul(transposed, at_end);
    let start = joined(p, r.state);
    let start = p.unsqueeze(start, &[2]);
    let (before, after) = match log {
        Some(log) => carry_decayed(p, r.dims, added, start, log),
        None => carry_summed(p, added, start),
    };
    let after = p.squeeze(after, &[2]);
    let (s, z) = apart(p, after, r.dims);
    let z = z.map(|z| {
        let z = p.slice(z, -1, 0, 1);
        p.squeeze(z, &[-1])
    });
    Carried { before, after: RecurrentState { s, z } }
}

fn carry_summed(p: &mut Patch<'_>, added: ValueId, start: ValueId) -> (ValueId, ValueId) {
    let sums = p.cumsum(added, 2, true);
    let before = p.add(sums, start);
    let total = p.reduce("ReduceSum", added, &[2], true);
    (before, p.add(total, start))
}

fn carry_decayed(
    p: &mut Patch<'_>,
    d: Dims,
    added: ValueId,
    start: ValueId,
    log: &Logs,
) -> (ValueId, ValueId) {
    // E_n: decay before chunk n; I_n: after it.
    let inclusive = p.cumsum(log.whole, 2, false);
    let exclusive = p.sub(inclusive, log.whole);
    let (row, column) = (p.unsqueeze(exclusive, &[3]), p.unsqueeze(inclusive, &[2]));
    let count = p.shape_of(log.whole, 2, 3);
    let count = p.squeeze(count, &[0]);
    let mixing = decay_between(p, row, column, count, true);

    // One row per chunk: [batch, kv_heads, chunks, m · width].
    let flat = p.reshape(added, &[0, 0, -1, d.features * width(d)]);
    let mixed = p.matmul(mixing, flat);
    let like = p.shape_of(added, 0, 5);
    let mixed = p.reshape_to(mixed, like);
    let since_start = p.exp(exclusive);
    let since_start = p.unsqueeze(since_start, &[3, 4]);
    let old = p.mul(start, since_start);
    let before = p.add(mixed, old);

    let total = p.slice(inclusive, 2, -1, i64::MAX);
    let left = p.sub(total, inclusive);
    let to_end = p.exp(left);
    let to_end = p.unsqueeze(to_end, &[2]);
    let new = p.matmul(to_end, flat);
    let new = p.reshape(new, &[0, 0, 1, d.features, width(d)]);
    let whole = p.exp(total);
    let whole = p.unsqueeze(whole, &[3, 4]);
    let old = p.mul(start, whole);
    (before, p.add(new, old))
}
