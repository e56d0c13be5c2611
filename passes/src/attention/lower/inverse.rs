//! (I + A)⁻¹ of a strictly lower triangle A = tril(x yᵀ ⊙ D, -1) of each chunk, D_ij = exp(L_i - L_j).
//!
//! Powers of A explode for keys that are alike, though the inverse stays small: of 64 tokens of one kind they reach 10⁵
//! in f32. So none are taken. Squares on the diagonal are joined two by two,
//! [P 0; Q R]⁻¹ = [P⁻¹ 0; -R⁻¹ Q P⁻¹ R⁻¹]: in a block of BLOCK tokens all squares of one size at once, as
//! X ← X - X Q X, where X holds their inverses and Q what stands between the two of each pair.
//!
//! In a graph that is trained X is a constant to gradients, and what is read is X + X (I - X - A X), one step of Newton's
//! method. The step changes nothing but roundings, and its gradient by A is that of the inverse, -Xᵀ dX Xᵀ, in two products.

use super::grid::decay_between;
use super::{decay_of, lower_triangle};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use dijiang_format::dtype::DType;
use dijiang_format::names::HELD;

/// How often the squares of a block double, from one token.
const DOUBLINGS: u32 = 6;
/// The tokens of a block at most.
pub(super) const BLOCK: u32 = 1 << DOUBLINGS;

/// What A is made of, f32.
pub(super) struct Triangle {
    /// x and y, `[batch, heads, chunks, chunk, m]`
    pub(super) rows: ValueId,
    pub(super) columns: ValueId,
    /// L, `[batch, heads, chunks, chunk]`; none where it is 0
    pub(super) log: Option<ValueId>,
    /// How many chunks there are, `[1]`
    pub(super) count: ValueId,
    /// `[1]`, a multiple of 2^halvings
    pub(super) chunk: ValueId,
    /// Whether the graph is trained.
    pub(super) is_trained: bool,
}

impl Triangle {
    /// `[batch, heads, chunks, chunk, chunk]`; chunks are halved so many times down to blocks.
    pub(super) fn inverse(&self, p: &mut Patch<'_>, halvings: u32) -> ValueId {
        if !self.is_trained {
            let products = self.products(p, halvings);
            return self.joined_up(p, products, halvings);
        }
        let products = self.products(p, 0);
        let inverse = p.within(HELD, |p| match halvings {
            0 => self.joined_up(p, products, 0),
            _ => {
                let products = self.products(p, halvings);
                self.joined_up(p, products, halvings)
            }
        });
        products.stepped(p, inverse)
    }

    /// From the products of blocks.
    fn joined_up(&self, p: &mut Patch<'_>, products: Products, halvings: u32) -> ValueId {
        let mut inverse = products.inverse(p);
        let mut size = products.size;
        for left in (0..halvings).rev() {
            let pairs = self.blocks(p, left);
            inverse = self.joined(p, inverse, [size, pairs.count]);
            size = pairs.size;
        }
        let lead = p.ints(&[0, 0]);
        let shape = p.concat(&[lead, self.count, self.chunk, self.chunk], 0);
        p.reshape_to(inverse, shape)
    }

    /// Chunks halved so many times.
    fn blocks(&self, p: &mut Patch<'_>, halvings: u32) -> Blocks {
        if halvings == 0 {
            return Blocks { count: self.count, size: self.chunk };
        }
        let parts = p.ints(&[1 << halvings]);
        Blocks { count: p.mul(self.count, parts), size: p.div(self.chunk, parts) }
    }

    /// `[batch, heads, chunks, chunk, tail…]` → `[batch, heads, sizes…, tail…]`
    fn cut(p: &mut Patch<'_>, x: ValueId, sizes: &[ValueId], tail: Option<i64>) -> ValueId {
        let lead = p.ints(&[0, 0]);
        let tail = tail.map(|tail| p.ints(&[tail]));
        let shape: Vec<ValueId> = [lead].into_iter().chain(sizes.iter().copied()).chain(tail).collect();
        let shape = p.concat(&shape, 0);
        p.reshape_to(x, shape)
    }

    /// x yᵀ ⊙ D of the blocks that chunks halved so many times have on their diagonals.
    fn products(&self, p: &mut Patch<'_>, halvings: u32) -> Products {
        let blocks = self.blocks(p, halvings);
        let m = p.known_dim(self.rows, 4) as i64;
        let sizes = [blocks.count, blocks.size];
        let [x, y] = [self.rows, self.columns].map(|x| Self::cut(p, x, &sizes, Some(m)));
        let transposed = p.transpose(y, &[0, 1, 2, 4, 3]);
        let mut all = p.matmul(x, transposed);
        if let Some(log) = self.log {
            let log = Self::cut(p, log, &sizes, None);
            let (row, column) = (p.unsqueeze(log, &[4]), p.unsqueeze(log, &[3]));
            let tokens = p.squeeze(blocks.size, &[0]);
            let decay = decay_between(p, row, column, tokens, false);
            all = p.mul(all, decay);
        }
        Products { all, size: blocks.size }
    }

    /// The inverses of blocks of twice the size.
    fn joined(&self, p: &mut Patch<'_>, inverse: ValueId, [size, pairs]: [ValueId; 2]) -> ValueId {
        let m = p.known_dim(self.rows, 4) as i64;
        let two = p.ints(&[2]);
        let halves = |p: &mut Patch<'_>, x: ValueId, tail: Option<i64>| {
            let apart = Self::cut(p, x, &[pairs, two, size], tail);
            split_in_two(p, apart)
        };
        let ([_, x], [y, _]) = (halves(p, self.rows, Some(m)), halves(p, self.columns, Some(m)));
        let logs = self.log.map(|log| {
            let [first, second] = halves(p, log, None);
            [second, first]
        });
        let transposed = p.transpose(y, &[0, 1, 2, 4, 3]);
        let products = p.matmul(x, transposed);
        let between = decayed(p, products, logs);
        let apart = Self::cut(p, inverse, &[pairs, two, size, size], None);
        let [first, second] = split_in_two(p, apart);
        let corner = p.matmul(between, first);
        let corner = p.matmul(second, corner);
        let corner = p.neg(corner);
        let zero = p.scalar_like(corner, 0.0);
        let none = p.mul(corner, zero);
        let (above, below) = (p.concat(&[first, none], 4), p.concat(&[corner, second], 4));
        p.concat(&[above, below], 3)
    }
}

/// x yᵀ ⊙ D of blocks; what stands on their diagonals and above is not read.
#[derive(Clone, Copy)]
struct Products {
    /// `[batch, heads, blocks, size, size]`
    all: ValueId,
    /// `[1]`
    size: ValueId,
}

impl Products {
    /// The inverse of each block.
    fn inverse(self, p: &mut Patch<'_>) -> ValueId {
        // A longer block would need more doublings: a call of so many tokens fails here and gives no wrong numbers.
        let most = p.ints(&[i64::from(BLOCK)]);
        let size = p.min(self.size, most);
        let tokens = p.squeeze(size, &[0]);
        let between = between_pairs(p, tokens);
        let identity = identity(p, tokens);
        let first = p.mul(self.all, between[0]);
        let alone = p.sub(identity, first);
        between[1..].iter().fold(alone, |inverse, between| {
            let between = p.mul(self.all, *between);
            let corner = p.matmul(between, inverse);
            let corner = p.matmul(inverse, corner);
            p.sub(inverse, corner)
        })
    }

    /// One step of Newton's method from the inverse.
    fn stepped(self, p: &mut Patch<'_>, inverse: ValueId) -> ValueId {
        let tokens = p.squeeze(self.size, &[0]);
        let below = lower_triangle(p, tokens, true);
        let triangle = p.mul(self.all, below);
        let product = p.matmul(triangle, inverse);
        let product = p.add(inverse, product);
        let identity = identity(p, tokens);
        let rest = p.sub(identity, product);
        let step = p.matmul(inverse, rest);
        p.add(inverse, step)
    }
}

/// `[batch, heads, pairs, 2, …]` → both of `[batch, heads, pairs, …]`
fn split_in_two(p: &mut Patch<'_>, x: ValueId) -> [ValueId; 2] {
    let parts = p.split(x, 3, &[1, 1]);
    [parts[0], parts[1]].map(|half| p.squeeze(half, &[3]))
}

/// Squares on the diagonals of all chunks: `[1]` each.
#[derive(Clone, Copy)]
struct Blocks {
    count: ValueId,
    size: ValueId,
}

/// `[…, rows, columns]` times exp(L_row - L_column).
fn decayed(p: &mut Patch<'_>, products: ValueId, logs: Option<[ValueId; 2]>) -> ValueId {
    let Some([rows, columns]) = logs else { return products };
    let (row, column) = (p.unsqueeze(rows, &[4]), p.unsqueeze(columns, &[3]));
    let between = p.sub(row, column);
    let decay = decay_of(p, between);
    p.mul(products, decay)
}

/// Where a row is in the second square of a pair and a column in the first, f32 `[size, size]`, for squares of 1, 2, 4 …
/// tokens.
fn between_pairs(p: &mut Patch<'_>, size: ValueId) -> Vec<ValueId> {
    let index = p.range(size);
    let squares: Vec<[ValueId; 2]> = (0..=DOUBLINGS)
        .map(|doubling| {
            let tokens = p.ints(&[1 << doubling]);
            let square = p.div(index, tokens);
            [p.unsqueeze(square, &[1]), p.unsqueeze(square, &[0])]
        })
        .collect();
    let between = squares.windows(2).map(|at| {
        let ([row, column], [pair_row, pair_column]) = (at[0], at[1]);
        let is_later = p.greater(row, column);
        let is_pair = p.equal(pair_row, pair_column);
        let between = p.node(Op::new("And"), &[is_later, is_pair]);
        p.cast(between, DType::F32)
    });
    between.collect()
}

/// `[size, size]`, f32.
fn identity(p: &mut Patch<'_>, size: ValueId) -> ValueId {
    let index = p.range(size);
    let (column, row) = (p.unsqueeze(index, &[0]), p.unsqueeze(index, &[1]));
    let same = p.equal(row, column);
    p.cast(same, DType::F32)
}
