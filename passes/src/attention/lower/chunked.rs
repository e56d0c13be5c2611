//! The chunked form: the parallel form inside chunks of C tokens, and across chunks
//! S_n = exp(L_n) S_{n-1} + Σ_j exp(L_n - L_j) φ(k_j) ⊗ v_j, carried by a cumulative sum, or with
//! decay by an [N, N] product of decays.
//!
//! The sequence is padded to whole chunks with φ(k) = 0 and log a = 0, which changes no state. A
//! sequence shorter than a chunk is one chunk of its own length.

use super::{Layout, Lowered, Recurrence, State, Sums, decay_of, lower_triangle};
use crate::ir::dtype::DType;
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence, size: u32) -> Lowered {
    let d = r.dims;
    let time = p.shape_of(r.k, 2, 3);
    let grid = Grid::new(p, time, size);
    // [batch, kv_heads, group, chunks, chunk, ·], group 1 for keys and values.
    let q = grid.cut(p, r.q, &[d.kv_heads, d.group()], &[d.features]);
    let k = grid.cut(p, r.k, &[d.kv_heads, 1], &[d.features]);
    let v = grid.cut(p, r.v, &[d.kv_heads, 1], &[d.value_dim]);
    let log = r.log_decay.map(|log| Logs::new(p, &grid, log, d.kv_heads));

    let inside = inside_chunks(p, q, k, &grid, log.as_ref());
    let carried = carry(p, r, k, v, log.as_ref());
    let from_start = match &log {
        Some(log) => {
            let decay = p.exp(log.inside);
            let decay = p.unsqueeze(decay, &[5]);
            p.mul(q, decay)
        }
        None => q,
    };
    let (new, old) = (p.matmul(inside, v), p.matmul(from_start, carried.before.s));
    let num = p.add(new, old);
    let z = p.unsqueeze(carried.before.z, &[5]);
    let (new, old) = (p.reduce("ReduceSum", inside, &[-1], true), p.matmul(from_start, z));
    let den = p.add(new, old);
    Lowered {
        sums: Sums {
            num: Grid::join(p, num, d.heads, d.value_dim, time),
            den: Grid::join(p, den, d.heads, 1, time),
            layout: Layout::HeadMajor,
        },
        state: carried.after,
    }
}

/// How a sequence is cut: C = min(T, size), N = ceil(T / C), and what is missing to N·C.
struct Grid {
    /// `[1]` each
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
        let missing = p.sub(whole, time);
        Self { chunk, count, missing }
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

    /// Zeros behind the sequence, axis 2.
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

    /// Back to `[batch, heads, sequence, width]`, without the padding.
    fn join(p: &mut Patch<'_>, x: ValueId, heads: i64, width: i64, time: ValueId) -> ValueId {
        let flat = p.reshape(x, &[0, heads, -1, width]);
        let start = p.ints(&[0]);
        let kept = p.slice_to(flat, 2, start, time);
        // States the length again, which a slice to a computed bound does not.
        let shape = [p.ints(&[0, heads]), time, p.ints(&[width])];
        let shape = p.concat(&shape, 0);
        p.reshape_to(kept, shape)
    }
}

/// Cumulative log decays, shaped for broadcasting against `[batch, kv_heads, group, chunks, chunk, ·]`.
struct Logs {
    /// Inside each chunk, its own token included: `[batch, kv_heads, 1, chunks, chunk]`
    inside: ValueId,
    /// Of each whole chunk: `[batch, kv_heads, 1, chunks]`
    whole: ValueId,
}

impl Logs {
    fn new(p: &mut Patch<'_>, grid: &Grid, log: ValueId, kv_heads: i64) -> Self {
        let cut = grid.cut(p, log, &[kv_heads, 1], &[]);
        let inside = p.cumsum(cut, 4, false);
        let whole = p.reduce("ReduceSum", cut, &[4], false);
        Self { inside, whole }
    }
}

/// φ(q_i)·φ(k_j) exp(L_i - L_j) for j ≤ i in the same chunk.
fn inside_chunks(p: &mut Patch<'_>, q: ValueId, k: ValueId, grid: &Grid, log: Option<&Logs>) -> ValueId {
    let turned = p.transpose(k, &[0, 1, 2, 3, 5, 4]);
    let products = p.matmul(q, turned);
    let size = p.squeeze(grid.chunk, &[0]);
    let triangle = lower_triangle(p, size, false);
    let causal = p.mul(products, triangle);
    let Some(log) = log else { return causal };
    let (row, column) = (p.unsqueeze(log.inside, &[5]), p.unsqueeze(log.inside, &[4]));
    let between = p.sub(row, column);
    let decay = decay_of(p, between);
    p.mul(causal, decay)
}

/// The state before each chunk (`[batch, kv_heads, 1, chunks, m, ·]`), and after the last.
struct Carried {
    before: State,
    after: State,
}

fn carry(p: &mut Patch<'_>, r: &Recurrence, k: ValueId, v: ValueId, log: Option<&Logs>) -> Carried {
    let to_end = match log {
        Some(log) => {
            let end = p.unsqueeze(log.whole, &[4]);
            let left = p.sub(end, log.inside);
            let decay = decay_of(p, left);
            let decay = p.unsqueeze(decay, &[5]);
            p.mul(k, decay)
        }
        None => k,
    };
    let turned = p.transpose(to_end, &[0, 1, 2, 3, 5, 4]);
    let added = State { s: p.matmul(turned, v), z: p.reduce("ReduceSum", to_end, &[4], false) };
    let start = State { s: p.unsqueeze(r.state.s, &[2, 3]), z: p.unsqueeze(r.state.z, &[2, 3]) };
    match log {
        Some(log) => carry_decayed(p, r, added, start, log),
        None => carry_summed(p, added, start),
    }
}

fn carry_summed(p: &mut Patch<'_>, added: State, start: State) -> Carried {
    let mut one = |added: ValueId, start: ValueId| {
        let sums = p.cumsum(added, 3, true);
        let before = p.add(sums, start);
        let total = p.reduce("ReduceSum", added, &[3], true);
        let after = p.add(total, start);
        (before, p.squeeze(after, &[2, 3]))
    };
    let (s, s_after) = one(added.s, start.s);
    let (z, z_after) = one(added.z, start.z);
    Carried { before: State { s, z }, after: State { s: s_after, z: z_after } }
}

fn carry_decayed(p: &mut Patch<'_>, r: &Recurrence, added: State, start: State, log: &Logs) -> Carried {
    let d = r.dims;
    // E_n: decay before chunk n; I_n: behind it.
    let inclusive = p.cumsum(log.whole, 3, false);
    let exclusive = p.sub(inclusive, log.whole);
    let (row, column) = (p.unsqueeze(exclusive, &[4]), p.unsqueeze(inclusive, &[3]));
    let between = p.sub(row, column);
    let decay = decay_of(p, between);
    let count = p.shape_of(log.whole, 3, 4);
    let count = p.squeeze(count, &[0]);
    let earlier = lower_triangle(p, count, true);
    let mixing = p.mul(decay, earlier);
    let since_start = p.exp(exclusive);

    let total = p.slice(inclusive, 3, -1, i64::MAX);
    let left = p.sub(total, inclusive);
    let to_end = decay_of(p, left);
    let whole = p.exp(total);

    // One row per chunk: [batch, kv_heads, 1, chunks, m · value_dim].
    let flat = p.reshape(added.s, &[0, d.kv_heads, 1, -1, d.features * d.value_dim]);
    let mixed = p.matmul(mixing, flat);
    let like = p.shape_of(added.s, 0, 6);
    let mixed = p.reshape_to(mixed, like);
    let old = p.unsqueeze(since_start, &[4, 5]);
    let old = p.mul(start.s, old);
    let before_s = p.add(mixed, old);
    let mixed = p.matmul(mixing, added.z);
    let old = p.unsqueeze(since_start, &[4]);
    let old = p.mul(start.z, old);
    let before_z = p.add(mixed, old);

    let end = p.unsqueeze(to_end, &[4, 5]);
    let new = p.mul(added.s, end);
    let new = p.reduce("ReduceSum", new, &[3], true);
    let old = p.unsqueeze(whole, &[4, 5]);
    let old = p.mul(start.s, old);
    let after_s = p.add(new, old);
    let end = p.unsqueeze(to_end, &[4]);
    let new = p.mul(added.z, end);
    let new = p.reduce("ReduceSum", new, &[3], true);
    let old = p.unsqueeze(whole, &[4]);
    let old = p.mul(start.z, old);
    let after_z = p.add(new, old);
    Carried {
        before: State { s: before_s, z: before_z },
        after: State { s: p.squeeze(after_s, &[2, 3]), z: p.squeeze(after_z, &[2, 3]) },
    }
}
