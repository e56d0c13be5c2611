//! Tensors that are not stored as a family asks for them: their rows are taken from where they lie, decoded and changed
//! while they are read.

use super::header::Raw;
use super::kinds::How;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::tensor::{Elements, ReadError, SharedBytes, Tensor};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Bytes that are decoded at a time, about.
const STRIP: usize = 256 * 1024;

/// Which stored row each row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// The same.
    Same,
    /// Those from this one on.
    From(usize),
    /// The halves of each head, which lie row by row in turns.
    Halves { heads: usize },
    /// Each key/value head's queries, its key and its value: stored are all queries, all keys, all values.
    Groups { heads: usize, kv_heads: usize },
}

impl Rows {
    /// Where row `at` of `count` lies.
    fn of(self, at: usize, count: usize) -> usize {
        match self {
            Self::Same => at,
            Self::From(first) => first + at,
            Self::Halves { heads } => {
                let size = count / heads;
                let (head, within) = (at / size, at % size);
                let (half, pair) = (within / (size / 2), within % (size / 2));
                head * size + pair * 2 + half
            }
            Self::Groups { heads, kv_heads } => {
                let size = count / (heads + 2 * kv_heads);
                let (head, within, each) = (at / size, at % size, heads / kv_heads);
                let (group, part) = (head / (each + 2), head % (each + 2));
                let stored = match part.checked_sub(each) {
                    None => group * each + part,
                    Some(0) => heads + group,
                    Some(_) => heads + kv_heads + group,
                };
                stored * size + within
            }
        }
    }

    /// Whether so many rows are those of all heads.
    pub(super) fn fit(self, count: usize) -> bool {
        let of_each = match self {
            Self::Same | Self::From(_) => return true,
            Self::Halves { heads } => heads.checked_mul(2),
            Self::Groups { heads, kv_heads } => {
                let all = kv_heads.checked_mul(2).and_then(|n| n.checked_add(heads));
                all.filter(|_| kv_heads > 0 && heads.is_multiple_of(kv_heads))
            }
        };
        of_each.is_some_and(|each| each > 0 && count > 0 && count.is_multiple_of(each))
    }
}

/// What is done to a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) rows: Rows,
    /// One is taken from every number.
    pub(super) less_one: bool,
    /// The last two dims change places.
    pub(super) transposed: bool,
}

impl Change {
    pub(super) const NONE: Self = Self { rows: Rows::Same, less_one: false, transposed: false };

    fn is_none(&self) -> bool {
        self.rows == Rows::Same && !self.less_one && !self.transposed
    }
}

/// The tensor of these dims that is stored as `raw`, with a change. None where its type is not read.
pub(super) fn tensor(file: &SharedBytes, raw: &Raw, dims: Vec<u64>, change: Change) -> Option<Tensor> {
    let stored = raw.kind.dtype()?;
    if change.is_none() && !raw.kind.is_quantised() {
        return Tensor::view(stored, dims, file.clone(), raw.offset, raw.bytes).ok();
    }
    // Of a stored row: the other way round it is the first dim. A vector is as good as many rows of one number, where no
    // block is cut.
    let width = match dims.as_slice() {
        [first, _] if change.transposed => first,
        [_, .., last] => last,
        [count] if raw.kind.is_quantised() => count,
        _ => &1,
    };
    let width = usize::try_from(*width).ok().filter(|width| *width > 0)?;
    let count = dims.iter().product::<u64>() as usize / width;
    if !change.rows.fit(count) {
        return None;
    }
    let dtype = if change.less_one { DType::F32 } else { stored };
    let elements = Changed { file: file.clone(), raw: raw.clone(), width, count, change };
    Some(Tensor::computed(dtype, dims, Arc::new(elements)))
}

struct Changed {
    file: SharedBytes,
    raw: Raw,
    /// Of a stored row.
    width: usize,
    /// How many rows there are.
    count: usize,
    change: Change,
}

impl Changed {
    fn row_bytes(&self) -> usize {
        self.width / self.raw.kind.block * self.raw.kind.bytes
    }

    /// The numbers of rows that lie one after the other, as bytes of the type they are read in.
    fn stored(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        let mut bytes = vec![0; rows.len() * self.row_bytes()];
        self.file.read(self.raw.offset + rows.start * self.row_bytes(), &mut bytes);
        let How::Blocks(decode) = self.raw.kind.how else {
            out.append(&mut bytes);
            return;
        };
        let mut numbers = vec![0.0; self.raw.kind.block];
        for block in bytes.chunks_exact(self.raw.kind.bytes) {
            decode(block, &mut numbers);
            out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        }
    }

    /// Rows as the tensor has them.
    fn rows(&self, rows: Range<usize>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut run: Range<usize> = 0..0;
        for row in rows {
            let at = self.change.rows.of(row, self.count);
            if at != run.end || run.is_empty() {
                self.stored(run, &mut out);
                run = at..at;
            }
            run.end = at + 1;
        }
        self.stored(run, &mut out);
        if self.change.less_one { self.less_one(&out) } else { out }
    }

    fn less_one(&self, bytes: &[u8]) -> Vec<u8> {
        let stored = self.raw.kind.dtype().unwrap_or(DType::F32);
        let numbers = dijiang_format::elements::to_f32(stored, bytes);
        numbers.iter().flat_map(|x| (x - 1.0).to_le_bytes()).collect()
    }

    /// All of it, its columns as rows.
    fn columns(&self, take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
        let all = self.rows(0..self.count);
        let size = all.len() / (self.count * self.width).max(1);
        (0..self.width).try_for_each(|column| {
            let place = |row: usize| (row * self.width + column) * size;
            let row: Vec<u8> = (0..self.count).flat_map(|row| &all[place(row)..][..size]).copied().collect();
            take(&row)
        })
    }
}

impl Elements for Changed {
    fn read(&self, take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
        if self.change.transposed {
            let _ = self.columns(take);
            return;
        }
        let strip = (STRIP / self.row_bytes().max(1)).max(1);
        let _ = (0..self.count)
            .step_by(strip)
            .try_for_each(|start| take(&self.rows(start..(start + strip).min(self.count))));
    }

    fn problem(&self) -> Option<ReadError> {
        self.file.problem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(rows: Rows, count: usize) -> Vec<usize> {
        (0..count).map(|at| rows.of(at, count)).collect()
    }

    #[test]
    fn halves_of_heads_are_put_together_again() {
        // Two heads of four: stored are 0 2 1 3 of each.
        assert_eq!(order(Rows::Halves { heads: 2 }, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn each_group_has_its_queries_its_key_and_its_value() {
        // Four queries for two keys, one row each: q0 q1 k0 v0 q2 q3 k1 v1.
        let rows = Rows::Groups { heads: 4, kv_heads: 2 };
        assert_eq!(order(rows, 8), [0, 1, 4, 6, 2, 3, 5, 7]);
        assert!(rows.fit(8) && !rows.fit(9) && !Rows::Groups { heads: 3, kv_heads: 2 }.fit(7));
    }
}
