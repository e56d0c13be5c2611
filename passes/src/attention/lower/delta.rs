//! The delta rule in chunks of C tokens (Yang et al. 2024, the UT transform):
//!
//! S ← a_t S, S ← S + k_t ⊗ β_t (v_t - Sᵀk_t), o_t = φ(q_t)ᵀ S, with k = φ(k) a unit vector.
//!
//! With L the cumulative log decay inside a chunk, D_ij = exp(L_i - L_j) and A = tril(β k kᵀ ⊙ D, -1),
//! T = (I + A)⁻¹ gives U = T (β v) and W = T (β k e^L); what the tokens of a chunk write is u = U - W S, and
//! o = (q e^L) S + tril(q kᵀ ⊙ D) u. The state after a chunk is M S + N with K = k e^{L_C - L}, M = e^{L_C} I - Kᵀ W and
//! N = Kᵀ U, so that the states of all chunks are products of [M | N], as many at once as there are.

use super::grid::{Grid, Logs, inside_chunks};
use super::inverse::Triangle;
use super::{HeadOrder, Lowered, Recurrence, RecurrentState, Sums};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;

/// How often the states of chunks are joined, each time twice as many: a sequence is cut into 2^JOINS chunks at most, and
/// into longer ones where that is not enough.
const JOINS: u32 = 7;
/// The same of the parallel form, whose only chunk is the sequence.
const HALVINGS: u32 = 6;
/// Tokens of a block whose inverse is a product, in a chunk of the length that was asked for.
const BLOCK: u32 = 4;

/// How a sequence is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    /// All tokens are one.
    One,
    /// Of so many tokens, or more where there were too many.
    Of(u32),
}

impl Chunks {
    /// Halvings of a chunk down to the blocks of its inverse.
    fn halvings(self) -> u32 {
        match self {
            Self::One => HALVINGS,
            Self::Of(size) => (size / BLOCK).max(1).ilog2(),
        }
    }

    fn joins(self) -> u32 {
        match self {
            Self::One => 0,
            Self::Of(_) => JOINS,
        }
    }

    /// The tokens of a chunk, a multiple of 2^halvings.
    fn length(self, p: &mut Patch<'_>, time: ValueId, one: ValueId) -> ValueId {
        let at_least_one = p.max(time, one);
        let wanted = match self {
            Self::One => at_least_one,
            Self::Of(size) => {
                let size = p.ints(&[i64::from(size)]);
                let short = p.min(at_least_one, size);
                let least = up_to_multiple(p, at_least_one, 1 << JOINS).0;
                p.max(short, least)
            }
        };
        up_to_multiple(p, wanted, 1 << self.halvings()).1
    }
}

/// ceil(x / by), and that times `by`.
fn up_to_multiple(p: &mut Patch<'_>, x: ValueId, by: i64) -> (ValueId, ValueId) {
    let (less, by) = (p.ints(&[by - 1]), p.ints(&[by]));
    let up = p.add(x, less);
    let count = p.div(up, by);
    (count, p.mul(count, by))
}

pub(super) fn lower(p: &mut Patch<'_>, r: &Recurrence, beta: ValueId, chunks: Chunks) -> Lowered {
    let d = r.dims;
    let (time, one) = (p.shape_of(r.k, 2, 3), p.ints(&[1]));
    let chunk = chunks.length(p, time, one);
    let grid = Grid::of(p, time, chunk, one);
    let q = grid.queries(p, r.q, d);
    let k = grid.cut(p, r.k, &[d.kv_heads], &[d.features]);
    let v = grid.cut(p, r.v, &[d.kv_heads], &[d.value_dim]);
    let beta = grid.cut(p, beta, &[d.kv_heads], &[]);
    let log = r.log_decay.map(|log| Logs::new(p, &grid, log, d.kv_heads));

    let written = Written::new(p, [k, v, beta], log.as_ref(), &grid, chunks.halvings());
    let states = states(p, r, (written.step, grid.count), chunks.joins());
    let removed = p.matmul(written.w, states.before);
    let u = p.sub(written.u, removed);

    let inside = inside_chunks(p, [q, k], &grid, d, log.as_ref());
    let new = p.matmul(inside, u);
    let old = p.matmul(q, states.before);
    let last = p.ints(&[d.value_dim]);
    let [new, old] = [new, old].map(|sum| grid.by_head(p, sum, d, last));
    let old = log.as_ref().map_or(old, |log| log.since_start(p, old));
    let sums = p.add(new, old);
    Lowered {
        sums: Sums { num: grid.join(p, sums, d.heads, d.value_dim), den: None, order: HeadOrder::TokenMajor },
        state: RecurrentState { s: states.after, z: None },
    }
}

/// What the tokens of each chunk write, and what becomes of the state there.
struct Written {
    /// `[batch, kv_heads, chunks, chunk, value_dim]`
    u: ValueId,
    /// `[batch, kv_heads, chunks, chunk, m]`
    w: ValueId,
    /// [M | N], `[batch, kv_heads, chunks, m, m + value_dim]`
    step: ValueId,
}

impl Written {
    fn new(
        p: &mut Patch<'_>,
        [k, v, beta]: [ValueId; 3],
        log: Option<&Logs>,
        grid: &Grid,
        halvings: u32,
    ) -> Self {
        let (m, width) = (p.known_dim(k, 4) as i64, p.known_dim(v, 4) as i64);
        let beta = p.unsqueeze(beta, &[4]);
        let weighed = p.mul(k, beta);
        let (count, chunk, inside) = (grid.count, grid.chunk, log.map(|log| log.inside));
        let triangle = Triangle { rows: weighed, columns: k, log: inside, count, chunk };
        let inverse = triangle.inverse(p, halvings);
        let decayed = match log {
            Some(log) => {
                let decay = p.exp(log.inside);
                let decay = p.unsqueeze(decay, &[4]);
                p.mul(weighed, decay)
            }
            None => weighed,
        };
        let values = p.mul(v, beta);
        // Both in one product, in the order of [M | N].
        let both = p.concat(&[decayed, values], 4);
        let both = p.matmul(inverse, both);
        let parts = p.split(both, 4, &[m, width]);
        let step = step(p, k, both, log, [m, width]);
        Self { u: parts[1], w: parts[0], step }
    }
}

/// [M | N] = [e^{L_C} I - Kᵀ W | Kᵀ U].
fn step(p: &mut Patch<'_>, k: ValueId, both: ValueId, log: Option<&Logs>, [m, width]: [i64; 2]) -> ValueId {
    let at_end = log.map_or(k, |log| log.at_end(p, k));
    let transposed = p.transpose(at_end, &[0, 1, 2, 4, 3]);
    let added = p.matmul(transposed, both);
    let signs: Vec<f32> = (0..m + width).map(|column| if column < m { -1.0 } else { 1.0 }).collect();
    let signs = p.constant("signs", Tensor::from_f32(&[(m + width) as u64], &signs));
    let signed = p.mul(added, signs);
    let kept = unchanged(p, m, width);
    let kept = match log {
        Some(log) => {
            let decay = p.exp(log.whole);
            let decay = p.unsqueeze(decay, &[3, 4]);
            p.mul(kept, decay)
        }
        None => kept,
    };
    p.add(signed, kept)
}

/// [I | 0], which leaves a state as it is: `[m, m + width]`.
fn unchanged(p: &mut Patch<'_>, m: i64, width: i64) -> ValueId {
    let columns = m + width;
    let entries: Vec<f32> =
        (0..m * columns).map(|at| f32::from(u8::from(at / columns == at % columns))).collect();
    p.constant("unchanged", Tensor::from_f32(&[m as u64, columns as u64], &entries))
}

/// The states before each chunk, `[batch, kv_heads, chunks, m, value_dim]`, and after the last, without their axis.
struct States {
    before: ValueId,
    after: ValueId,
}

fn states(p: &mut Patch<'_>, r: &Recurrence, (step, count): (ValueId, ValueId), joins: u32) -> States {
    let chain = Chain { kv_heads: r.dims.kv_heads, m: r.dims.features, width: r.dims.value_dim, count };
    let steps = (0..joins).fold(step, |steps, join| chain.joined(p, steps, 1 << join));
    let [kept, added] = chain.parts(p, steps);
    let start = p.unsqueeze(r.state.s, &[2]);
    let kept = p.matmul(kept, start);
    let after = p.add(kept, added);
    let all = p.concat(&[start, after], 2);
    let before = p.slice(all, 2, 0, -1);
    let last = p.slice(all, 2, -1, i64::MAX);
    // States the count again, which a slice does not.
    let like = chain.shape(p, chain.width);
    States { before: p.reshape_to(before, like), after: p.squeeze(last, &[2]) }
}

/// The steps [M | N] of chunks, one after the other.
struct Chain {
    kv_heads: i64,
    m: i64,
    width: i64,
    /// Chunks, `[1]`
    count: ValueId,
}

impl Chain {
    /// `[batch, kv_heads, chunks, m, last]`
    fn shape(&self, p: &mut Patch<'_>, last: i64) -> ValueId {
        let (lead, tail) = (p.ints(&[0, self.kv_heads]), p.ints(&[self.m, last]));
        p.concat(&[lead, self.count, tail], 0)
    }

    /// M and N.
    fn parts(&self, p: &mut Patch<'_>, steps: ValueId) -> [ValueId; 2] {
        let parts = p.split(steps, 4, &[self.m, self.width]);
        [parts[0], parts[1]]
    }

    /// Each step after the one that stands `by` chunks before it, where there is one: M₂ [M₁ | N₁] + [0 | N₂].
    fn joined(&self, p: &mut Patch<'_>, steps: ValueId, by: i64) -> ValueId {
        let by = p.ints(&[by]);
        let alone = p.min(self.count, by);
        let (start, end) = (p.ints(&[0]), p.ints(&[i64::MAX]));
        let before_last = p.sub(self.count, alone);
        // Named as a size by this: a difference alone might be below zero.
        let before_last = p.max(before_last, start);
        let first = p.slice_to(steps, 2, start, alone);
        let [earlier, later] = [(start, before_last), (alone, end)].map(|(start, end)| {
            let some = p.slice_to(steps, 2, start, end);
            // Says that both are as many, which slices do not.
            let (lead, tail) = (p.ints(&[0, self.kv_heads]), p.ints(&[self.m, self.m + self.width]));
            let shape = p.concat(&[lead, before_last, tail], 0);
            p.reshape_to(some, shape)
        });
        let [kept, added] = self.parts(p, later);
        let product = p.matmul(kept, earlier);
        let parts = p.split(product, 4, &[self.m, self.width]);
        let sum = p.add(parts[1], added);
        let later = p.concat(&[parts[0], sum], 4);
        let all = p.concat(&[first, later], 2);
        let like = self.shape(p, self.m + self.width);
        p.reshape_to(all, like)
    }
}
