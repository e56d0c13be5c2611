//! The chunked form: the parallel form inside chunks of C tokens, and across chunks
//! S_n = exp(L_n) S_{n-1} + Σ_j exp(L_n - L_j) φ(k_j) ⊗ v_j, carried by a cumulative sum, or with
//! decay by an [N, N] product of decays.
//!
//! The normaliser is carried with the sum, in columns of [ones](super::ones). The query heads of a key/value head are rows of one product.
//!
//! The sequence is padded to whole chunks with φ(k) = 0 and log a = 0, which changes no state. A sequence shorter than a chunk is one chunk of its own length.

use super::grid::{Grid, Logs, decay_between, inside_chunks};
use super::ones::{ONES, joined, width, with_ones};
use super::{Dims, HeadOrder, Lowered, Recurrence, RecurrentState, Sums};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence, size: u32) -> Lowered {
    let d = r.dims;
    let grid = Grid::up_to(p, r.k, size);
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
    let [new, old] = [new, old].map(|sum| grid.by_head(p, sum, d, last));
    let old = log.as_ref().map_or(old, |log| log.since_start(p, old));
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

/// The states with their normalisers before each chunk, `[batch, kv_heads, chunks, m, width]`, and the
/// state after the last.
struct Carried {
    before: ValueId,
    after: RecurrentState,
}

fn carry(p: &mut Patch<'_>, r: &Recurrence, k: ValueId, v: ValueId, log: Option<&Logs>) -> Carried {
    let at_end = log.map_or(v, |log| log.at_end(p, v));
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
