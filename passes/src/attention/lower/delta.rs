//! The delta rule in chunks of C tokens (Yang et al. 2024, the UT transform):
//!
//! S ← a_t S, S ← S + k_t ⊗ β_t (v_t - Sᵀk_t), o_t = φ(q_t)ᵀ S, with k = φ(k) a unit vector.
//!
//! With L the cumulative log decay inside a chunk, D_ij = exp(L_i - L_j) and A = tril(β k kᵀ ⊙ D, -1),
//! T = (I + A)⁻¹ gives U = T (β v) and W = -T (β k e^L); what the tokens of a chunk write is u = U + W S, and
//! o = (q e^L) S + tril(q kᵀ ⊙ D) u. The state after a chunk is M S + N with K = k e^{L_C - L}, M = e^{L_C} I + Kᵀ W and
//! N = Kᵀ U. Chunks that stand beside each other are one of M₂ M₁ and M₂ N₁ + N₂, so that pairs, and pairs of pairs, give
//! the states before all of them; of the last few each is joined with those before it.

use super::grid::{Grid, Logs, inside_chunks};
use super::inverse::{BLOCK, Triangle};
use super::{HeadOrder, Lowered, Recurrence, RecurrentState, Sums};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;

/// How often chunks are paired. A sequence is cut into a multiple of 2^PAIRINGS chunks.
const PAIRINGS: u32 = 3;
/// How often what is left of them is joined, each time twice as many: there are 2^(PAIRINGS + JOINS) chunks at most, and
/// longer ones where that is not enough.
const JOINS: u32 = 6;
/// Halvings of the parallel form's only chunk, which is the sequence, down to the blocks of its inverse.
const HALVINGS: u32 = 5;

/// How a sequence is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    /// All tokens are one.
    One,
    /// Of so many tokens at most, or more where there were too many.
    Of(u32),
}

impl Chunks {
    /// Halvings of a chunk down to the blocks of its inverse.
    fn halvings(self) -> u32 {
        match self {
            Self::One => HALVINGS,
            Self::Of(size) => size.div_ceil(BLOCK).next_power_of_two().ilog2(),
        }
    }

    fn grid(self, p: &mut Patch<'_>, time: ValueId) -> Grid {
        let one = p.ints(&[1]);
        let at_least_one = p.max(time, one);
        let count = match self {
            Self::One => one,
            Self::Of(size) => {
                let (count, most) = (p.ints(&[i64::from(size)]), p.ints(&[1 << (PAIRINGS + JOINS)]));
                let count = up_to_multiple(p, at_least_one, count).0;
                let pairings = p.ints(&[1 << PAIRINGS]);
                let count = up_to_multiple(p, count, pairings).1;
                p.min(count, most)
            }
        };
        let chunk = up_to_multiple(p, at_least_one, count).0;
        let parts = p.ints(&[1 << self.halvings()]);
        let chunk = up_to_multiple(p, chunk, parts).1;
        Grid::exactly(p, time, chunk, count)
    }
}

/// ceil(x / by), and that times `by`.
fn up_to_multiple(p: &mut Patch<'_>, x: ValueId, by: ValueId) -> (ValueId, ValueId) {
    let one = p.ints(&[1]);
    let less = p.sub(by, one);
    let up = p.add(x, less);
    let count = p.div(up, by);
    (count, p.mul(count, by))
}

/// `is_trained`: whether the graph is.
pub(super) fn lower(
    p: &mut Patch<'_>,
    r: &Recurrence,
    beta: ValueId,
    (chunks, is_trained): (Chunks, bool),
) -> Lowered {
    let d = r.dims;
    let time = p.shape_of(r.k, 2, 3);
    let grid = chunks.grid(p, time);
    let q = grid.queries(p, r.q, d);
    let k = grid.cut(p, r.k, &[d.kv_heads], &[d.features]);
    let v = grid.cut(p, r.v, &[d.kv_heads], &[d.value_dim]);
    let beta = grid.cut(p, beta, &[d.kv_heads], &[]);
    let log = r.log_decay.map(|log| Logs::new(p, &grid, log, d.kv_heads));

    let inverse = Inverse { halvings: chunks.halvings(), is_trained };
    let written = Written::new(p, [k, v, beta], log.as_ref(), &grid, inverse);
    let start = p.unsqueeze(r.state.s, &[2]);
    let states = match chunks {
        Chunks::One => States { before: start, after: written.step.applied(p, start) },
        Chunks::Of(_) => {
            let chain = Chain { kv_heads: d.kv_heads, m: d.features, width: d.value_dim };
            chain.states(p, start, written.step, (grid.count, PAIRINGS))
        }
    };
    let changed = p.matmul(written.w, states.before);
    let u = p.add(written.u, changed);

    let inside = inside_chunks(p, [q, k], &grid, d, log.as_ref());
    let new = p.matmul(inside, u);
    let old = p.matmul(q, states.before);
    let last = p.ints(&[d.value_dim]);
    let [new, old] = [new, old].map(|sum| grid.by_head(p, sum, d, last));
    let old = log.as_ref().map_or(old, |log| log.since_start(p, old));
    let sums = p.add(new, old);
    Lowered {
        sums: Sums { num: grid.join(p, sums, d.heads, d.value_dim), den: None, order: HeadOrder::TokenMajor },
        state: RecurrentState { s: p.squeeze(states.after, &[2]), z: None },
    }
}

/// What becomes of a state in each chunk: M S + N.
#[derive(Clone, Copy)]
struct Step {
    /// M, `[batch, kv_heads, chunks, m, m]`
    kept: ValueId,
    /// N, `[batch, kv_heads, chunks, m, value_dim]`
    added: ValueId,
}

impl Step {
    fn applied(self, p: &mut Patch<'_>, state: ValueId) -> ValueId {
        let kept = p.matmul(self.kept, state);
        p.add(kept, self.added)
    }

    /// This step after the other.
    fn after(self, p: &mut Patch<'_>, first: Self) -> Self {
        Self { kept: p.matmul(self.kept, first.kept), added: self.applied(p, first.added) }
    }
}

/// How triangles are inverted.
#[derive(Clone, Copy)]
struct Inverse {
    halvings: u32,
    is_trained: bool,
}

/// What the tokens of each chunk write, and what becomes of the state there.
struct Written {
    /// `[batch, kv_heads, chunks, chunk, value_dim]`
    u: ValueId,
    /// `[batch, kv_heads, chunks, chunk, m]`
    w: ValueId,
    step: Step,
}

impl Written {
    fn new(
        p: &mut Patch<'_>,
        [k, v, beta]: [ValueId; 3],
        log: Option<&Logs>,
        grid: &Grid,
        Inverse { halvings, is_trained }: Inverse,
    ) -> Self {
        let m = p.known_dim(k, 4) as i64;
        let beta = p.unsqueeze(beta, &[4]);
        let (count, chunk, inside) = (grid.count, grid.chunk, log.map(|log| log.inside));
        let triangle = Triangle { rows: p.mul(k, beta), columns: k, log: inside, count, chunk, is_trained };
        let inverse = triangle.inverse(p, halvings);
        let values = p.mul(v, beta);
        let mut rates = p.neg(beta);
        if let Some(log) = log {
            let decay = p.exp(log.inside);
            let decay = p.unsqueeze(decay, &[4]);
            rates = p.mul(rates, decay);
        }
        let keys = p.mul(k, rates);
        let [u, w] = [values, keys].map(|of| p.matmul(inverse, of));

        let at_end = log.map_or(k, |log| log.at_end(p, k));
        let transposed = p.transpose(at_end, &[0, 1, 2, 4, 3]);
        let [added, changed] = [u, w].map(|written| p.matmul(transposed, written));
        let unchanged = unchanged(p, m);
        let unchanged = match log {
            Some(log) => {
                let decay = p.exp(log.whole);
                let decay = p.unsqueeze(decay, &[3, 4]);
                p.mul(unchanged, decay)
            }
            None => unchanged,
        };
        Self { u, w, step: Step { kept: p.add(changed, unchanged), added } }
    }
}

/// I, which leaves a state as it is: `[m, m]`.
fn unchanged(p: &mut Patch<'_>, m: i64) -> ValueId {
    let entries: Vec<f32> = (0..m * m).map(|at| f32::from(u8::from(at / m == at % m))).collect();
    p.constant("unchanged", Tensor::from_f32(&[m as u64, m as u64], &entries))
}

/// The states before each chunk, `[batch, kv_heads, chunks, m, value_dim]`, and after the last, of one chunk.
struct States {
    before: ValueId,
    after: ValueId,
}

/// Chunks, one after the other.
struct Chain {
    kv_heads: i64,
    m: i64,
    width: i64,
}

impl Chain {
    /// From the state before the first, of one chunk, and the steps of `count` chunks, which are paired so many times.
    fn states(
        &self,
        p: &mut Patch<'_>,
        start: ValueId,
        step: Step,
        (count, pairings): (ValueId, u32),
    ) -> States {
        let Some(pairings) = pairings.checked_sub(1) else {
            return self.joined_states(p, start, step, count);
        };
        let two = p.ints(&[2]);
        let pairs = p.div(count, two);
        let [first, second] = self.halves(p, step, [pairs, two]);
        let both = second.after(p, first);
        let outside = self.states(p, start, both, (pairs, pairings));
        let between = first.applied(p, outside.before);
        let [one, other] = [outside.before, between].map(|states| p.unsqueeze(states, &[3]));
        let all = p.concat(&[one, other], 3);
        let like = self.shape(p, count, self.width);
        States { before: p.reshape_to(all, like), after: outside.after }
    }

    /// The first of each pair, and the second.
    fn halves(&self, p: &mut Patch<'_>, step: Step, [pairs, two]: [ValueId; 2]) -> [Step; 2] {
        let [kept, added] = [(step.kept, self.m), (step.added, self.width)].map(|(x, last)| {
            let (lead, tail) = (p.ints(&[0, self.kv_heads]), p.ints(&[self.m, last]));
            let shape = p.concat(&[lead, pairs, two, tail], 0);
            let paired = p.reshape_to(x, shape);
            let parts = p.split(paired, 3, &[1, 1]);
            [parts[0], parts[1]].map(|half| p.squeeze(half, &[3]))
        });
        [Step { kept: kept[0], added: added[0] }, Step { kept: kept[1], added: added[1] }]
    }

    /// The same by joining each step with all that stand before it.
    fn joined_states(&self, p: &mut Patch<'_>, start: ValueId, step: Step, count: ValueId) -> States {
        let steps = p.concat(&[step.kept, step.added], 4);
        let steps = (0..JOINS).fold(steps, |steps, join| self.joined(p, steps, (count, 1 << join)));
        let after = self.step(p, steps).applied(p, start);
        let all = p.concat(&[start, after], 2);
        let before = p.slice(all, 2, 0, -1);
        let last = p.slice(all, 2, -1, i64::MAX);
        // States the count again, which a slice does not.
        let like = self.shape(p, count, self.width);
        States { before: p.reshape_to(before, like), after: last }
    }

    /// `[batch, kv_heads, count, m, last]`
    fn shape(&self, p: &mut Patch<'_>, count: ValueId, last: i64) -> ValueId {
        let (lead, tail) = (p.ints(&[0, self.kv_heads]), p.ints(&[self.m, last]));
        p.concat(&[lead, count, tail], 0)
    }

    /// Of [M | N].
    fn step(&self, p: &mut Patch<'_>, steps: ValueId) -> Step {
        let parts = p.split(steps, 4, &[self.m, self.width]);
        Step { kept: parts[0], added: parts[1] }
    }

    /// Each step [M | N] after the one that stands `by` before it, where there is one: M₂ [M₁ | N₁] + [0 | N₂].
    fn joined(&self, p: &mut Patch<'_>, steps: ValueId, (count, by): (ValueId, i64)) -> ValueId {
        let by = p.ints(&[by]);
        let alone = p.min(count, by);
        let (start, end) = (p.ints(&[0]), p.ints(&[i64::MAX]));
        let before_last = p.sub(count, alone);
        // Named as a size by this: a difference alone might be below zero.
        let before_last = p.max(before_last, start);
        let first = p.slice_to(steps, 2, start, alone);
        let [earlier, later] = [(start, before_last), (alone, end)].map(|(start, end)| {
            let some = p.slice_to(steps, 2, start, end);
            // Says that both are as many, which slices do not.
            let shape = self.shape(p, before_last, self.m + self.width);
            p.reshape_to(some, shape)
        });
        let later = self.step(p, later);
        let product = p.matmul(later.kept, earlier);
        let parts = p.split(product, 4, &[self.m, self.width]);
        let sum = p.add(parts[1], later.added);
        let later = p.concat(&[parts[0], sum], 4);
        let all = p.concat(&[first, later], 2);
        let like = self.shape(p, count, self.m + self.width);
        p.reshape_to(all, like)
    }
}
