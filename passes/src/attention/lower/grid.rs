//! How the chunked forms cut a sequence, and what they compute inside a chunk.

use super::{Dims, lower_triangle};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;

/// How a sequence is cut: C tokens per chunk, N = ceil(T / C), and what is missing to N·C, where anything may be.
pub(super) struct Grid {
    /// `[1]` each
    time: ValueId,
    pub(super) chunk: ValueId,
    pub(super) count: ValueId,
    missing: ValueId,
}

impl Grid {
    /// Chunks of at most `size` tokens of `[batch, heads, sequence, ·]`.
    pub(super) fn up_to(p: &mut Patch<'_>, x: ValueId, size: u32) -> Self {
        let time = p.shape_of(x, 2, 3);
        let size = p.ints(&[i64::from(size)]);
        let one = p.ints(&[1]);
        // An empty sequence still needs a chunk length to divide by.
        let at_least_one = p.max(time, one);
        let chunk = p.min(at_least_one, size);
        Self::of(p, time, chunk, one)
    }

    /// Chunks of `chunk` tokens; `one` is 1.
    fn of(p: &mut Patch<'_>, time: ValueId, chunk: ValueId, one: ValueId) -> Self {
        let up = p.add(time, chunk);
        let up = p.sub(up, one);
        let count = p.div(up, chunk);
        Self::exactly(p, time, chunk, count)
    }

    /// `count` chunks of `chunk` tokens.
    pub(super) fn exactly(p: &mut Patch<'_>, time: ValueId, chunk: ValueId, count: ValueId) -> Self {
        let whole = p.mul(count, chunk);
        Self { time, chunk, count, missing: p.sub(whole, time) }
    }

    /// `[batch, heads, sequence, tail…]` → `[batch, lead…, chunks, chunk, tail…]`
    pub(super) fn cut(&self, p: &mut Patch<'_>, x: ValueId, lead: &[i64], tail: &[i64]) -> ValueId {
        let padded = self.pad(p, x, tail.len());
        self.blocks(p, padded, lead, tail)
    }

    /// The same of what is padded.
    pub(super) fn blocks(&self, p: &mut Patch<'_>, padded: ValueId, lead: &[i64], tail: &[i64]) -> ValueId {
        let mut shape = vec![p.ints(&[&[0], lead].concat()), self.count, self.chunk];
        if !tail.is_empty() {
            shape.push(p.ints(tail));
        }
        let shape = p.concat(&shape, 0);
        p.reshape_to(padded, shape)
    }

    /// φ(q) as `[batch, kv_heads, chunks, group · chunk, m]`
    pub(super) fn queries(&self, p: &mut Patch<'_>, q: ValueId, d: Dims) -> ValueId {
        let cut = self.cut(p, q, &[d.kv_heads, d.group()], &[d.features]);
        let transposed = p.transpose(cut, &[0, 1, 3, 2, 4, 5]);
        let last = p.ints(&[d.features]);
        self.by_row(p, transposed, d, last)
    }

    /// `[batch, kv_heads, chunks, group, chunk, last]` → `[batch, kv_heads, chunks, group · chunk, last]`
    pub(super) fn by_row(&self, p: &mut Patch<'_>, x: ValueId, d: Dims, last: ValueId) -> ValueId {
        let group = p.ints(&[d.group()]);
        let rows = p.mul(self.chunk, group);
        let shape = [p.ints(&[0, d.kv_heads]), self.count, rows, last];
        let shape = p.concat(&shape, 0);
        p.reshape_to(x, shape)
    }

    /// The other way round.
    pub(super) fn by_head(&self, p: &mut Patch<'_>, x: ValueId, d: Dims, last: ValueId) -> ValueId {
        let shape = [p.ints(&[0, d.kv_heads]), self.count, p.ints(&[d.group()]), self.chunk, last];
        let shape = p.concat(&shape, 0);
        p.reshape_to(x, shape)
    }

    /// Zeros after the sequence, axis 2.
    pub(super) fn pad(&self, p: &mut Patch<'_>, x: ValueId, tail: usize) -> ValueId {
        let before = p.ints(&vec![0; 3 + tail + 2]);
        let mut pads = vec![before, self.missing];
        if tail > 0 {
            pads.push(p.ints(&vec![0; tail]));
        }
        let pads = p.concat(&pads, 0);
        p.wider_than_bf16(x, |p, x| {
            let dtype = p.dtype(x);
            let zero = p.constant("zero", Tensor::scalar(dtype, 0.0));
            p.node(Op::new("Pad"), &[x, pads, zero])
        })
    }

    /// `[batch, kv_heads, chunks, group, chunk, width]` → `[batch, sequence, heads, width]`, without the padding.
    pub(super) fn join(&self, p: &mut Patch<'_>, x: ValueId, heads: i64, width: i64) -> ValueId {
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
pub(super) struct Logs {
    /// Inside each chunk, its own token included: `[batch, kv_heads, chunks, chunk]`
    pub(super) inside: ValueId,
    /// Of each whole chunk: `[batch, kv_heads, chunks]`
    pub(super) whole: ValueId,
}

impl Logs {
    pub(super) fn new(p: &mut Patch<'_>, grid: &Grid, log: ValueId, kv_heads: i64) -> Self {
        let cut = grid.cut(p, log, &[kv_heads], &[]);
        let inside = p.cumsum(cut, 3, false);
        let whole = p.reduce("ReduceSum", cut, &[3], false);
        Self { inside, whole }
    }

    /// What is left of each token at the end of its chunk, `[batch, kv_heads, chunks, chunk, ·]`.
    pub(super) fn at_end(&self, p: &mut Patch<'_>, x: ValueId) -> ValueId {
        let end = p.unsqueeze(self.whole, &[3]);
        let left = p.sub(end, self.inside);
        let decay = p.exp(left);
        let decay = p.unsqueeze(decay, &[4]);
        p.mul(x, decay)
    }

    /// What is left at each token of what the chunk began with, `[batch, kv_heads, chunks, group, chunk, ·]`.
    pub(super) fn since_start(&self, p: &mut Patch<'_>, x: ValueId) -> ValueId {
        let decay = p.exp(self.inside);
        let decay = p.unsqueeze(decay, &[3, 5]);
        p.mul(x, decay)
    }
}

/// φ(q_i)·φ(k_j) exp(L_i - L_j) for j ≤ i in the same chunk, `[batch, kv_heads, chunks, group · chunk, chunk]`.
pub(super) fn inside_chunks(
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
pub(super) fn decay_between(
    p: &mut Patch<'_>,
    row: ValueId,
    column: ValueId,
    size: ValueId,
    strict: bool,
) -> ValueId {
    const CLOSED: f64 = 1e30;
    let open = lower_triangle(p, size, strict);
    let bias = p.add_scalar(open, -1.0);
    let bias = p.mul_scalar(bias, CLOSED);
    let between = p.sub(row, column);
    let between = p.add(between, bias);
    p.exp(between)
}
