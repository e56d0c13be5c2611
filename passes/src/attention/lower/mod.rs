//! Lowerings of one recurrence, equal to rounding:
//!
//! S_t = a_t S_{t-1} + φ(k_t) ⊗ v_t,  z_t = a_t z_{t-1} + φ(k_t),
//! num_t = φ(q_t)ᵀ S_t,  den_t = φ(q_t)·z_t,
//!
//! or, under the delta rule, S_t = a_t S_{t-1} + φ(k_t) ⊗ β_t (v_t - a_t S_{t-1}ᵀφ(k_t)) without z.
//!
//! All take a state and return one. Everything is f32, but for what [`Form::Segment`] computes of features that sum to
//! one.

use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;

pub(crate) mod bidirectional;
pub(super) mod by_token;
mod chunked;
mod delta;
mod grid;
pub mod grouped;
mod inverse;
pub(crate) mod leaving;
mod ones;
mod parallel;
mod recurrent;
mod segment;
pub mod tokens_first;
pub mod window;
mod window_band;
mod window_step;

/// What a lowering is given.
#[derive(Debug, Clone, Copy)]
pub struct Recurrence {
    /// φ(q), `[batch, heads, sequence, m]`, or with the [heads first](Form::puts_heads_first)
    pub q: ValueId,
    /// φ(k), `[batch, kv_heads, sequence, m]` or as φ(q); zero on padding, unless the form
    /// [masks values](Form::masks_values)
    pub k: ValueId,
    /// `[batch, kv_heads, sequence, value_dim]`
    pub v: ValueId,
    /// 1 for a token that writes into the state and else 0, f32 `[batch, sequence]`; none where all do
    pub valid: Option<ValueId>,
    /// log a_t, zero on padding, `[batch, kv_heads, sequence]`; none where a_t = 1
    pub log_decay: Option<ValueId>,
    /// β_t, zero where nothing is written, f32 `[batch, kv_heads, sequence]`, where the rule is delta
    pub beta: Option<ValueId>,
    pub state: RecurrentState,
    pub dims: Dims,
}

/// S `[batch, kv_heads, m, value_dim]` and z `[batch, kv_heads, m]`, which is there if the readout
/// [divides](Dims::divides).
#[derive(Debug, Clone, Copy)]
pub struct RecurrentState {
    pub s: ValueId,
    pub z: Option<ValueId>,
}

/// The dims of a site that are numbers.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    pub heads: i64,
    pub kv_heads: i64,
    pub features: i64,
    pub value_dim: i64,
    /// Whether the readout divides by φ(q)·z. What is normalised otherwise needs no z.
    pub divides: bool,
}

impl Dims {
    /// Query heads per key/value head.
    pub fn group(&self) -> i64 {
        self.heads / self.kv_heads
    }
}

/// What a lowering gives.
#[derive(Debug, Clone, Copy)]
pub struct Lowered {
    pub sums: Sums,
    pub state: RecurrentState,
}

/// What the readout reads.
#[derive(Debug, Clone, Copy)]
pub struct Sums {
    /// Last axis `value_dim`.
    pub num: ValueId,
    /// Last axis 1; there if the readout [divides](Dims::divides).
    pub den: Option<ValueId>,
    pub order: HeadOrder,
}

/// The order of the leading axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOrder {
    /// `[batch, heads, sequence, ·]`
    HeadMajor,
    /// `[batch, sequence, heads, ·]`
    TokenMajor,
}

/// Which arithmetic the recurrence becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One masked φ(Q) φ(K)ᵀ over all tokens: the plainest, and quadratic.
    Parallel,
    /// The parallel form inside chunks of this many tokens, the state across them.
    Chunked(u32),
    /// The same for a device, for sequences of whole chunks or of less than one, and in half precision where features
    /// allow it.
    Segment(u32),
    /// A `LinearAttention` operator of this domain.
    Operator(&'static str),
    /// The same where a call brings one token per row, which is never padding.
    OneToken(&'static str),
}

impl Form {
    /// Whether padding is taken out of the values, which are narrower than the features, and not of the keys.
    pub fn masks_values(self) -> bool {
        matches!(self, Self::Operator(_) | Self::OneToken(_) | Self::Segment(_))
    }

    /// Whether runtimes serve it; the others are there to compare with, and to train.
    pub fn is_served(self) -> bool {
        matches!(self, Self::Operator(_) | Self::OneToken(_) | Self::Segment(_))
    }

    /// Whether features are `[heads, batch, sequence, m]`.
    pub fn puts_heads_first(self) -> bool {
        matches!(self, Self::Segment(_))
    }

    /// Whether a ring of keys and values is states of its own, which an operator may write in place.
    pub fn splits_rings(self) -> bool {
        matches!(self, Self::OneToken(_) | Self::Segment(_))
    }

    pub fn lower(self, p: &mut Patch<'_>, r: &Recurrence) -> Lowered {
        match (self, r.beta) {
            (Self::Operator(domain) | Self::OneToken(domain), _) => recurrent::lower(p, r, domain),
            (Self::Parallel, None) => parallel::lower(p, r),
            (Self::Chunked(size), None) => chunked::lower(p, r, size),
            (Self::Segment(size), None) => segment::lower(p, r, size),
            (Self::Parallel, Some(beta)) => {
                exactly(p, |p| delta::lower(p, r, beta, (delta::Chunks::One, true)))
            }
            (Self::Chunked(size) | Self::Segment(size), Some(beta)) => {
                let is_trained = !self.is_served();
                exactly(p, |p| delta::lower(p, r, beta, (delta::Chunks::Of(size), is_trained)))
            }
        }
    }
}

/// What is written stays f32 in training too: a token writes the difference of its value and what was there, which may be
/// far smaller than both.
fn exactly(p: &mut Patch<'_>, write: impl FnOnce(&mut Patch<'_>) -> Lowered) -> Lowered {
    p.within(dijiang_format::names::EXACT, write)
}

/// `[rows, columns]`, f32: 1 on and below the diagonal (below it only, if `strict`).
fn lower_triangle(p: &mut Patch<'_>, size: ValueId, strict: bool) -> ValueId {
    let index = p.range(size);
    let (column, row) = (p.unsqueeze(index, &[0]), p.unsqueeze(index, &[1]));
    let keep = if strict { p.greater(row, column) } else { p.less_or_equal(column, row) };
    p.cast(keep, dijiang_format::dtype::DType::F32)
}

/// exp(min(x, 0)): decays are at most one, and what the triangle closes must not overflow before it does.
fn decay_of(p: &mut Patch<'_>, log: ValueId) -> ValueId {
    let zero = p.scalar_like(log, 0.0);
    let bounded = p.min(log, zero);
    p.exp(bounded)
}
