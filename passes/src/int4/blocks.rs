//! A matrix in blocks of four bits. Nothing of it is read before it is written out, and then a few rows at a time.

use crate::ir::tensor::{Elements, ReadError, Tensor};
use dijiang_format::dtype::DType;
use dijiang_format::elements::rounded;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Numbers that share a scale and a zero point.
pub const BLOCK: usize = 32;
/// The largest number of four bits.
const LARGEST: f32 = 15.0;
/// Parts of a block's range that are tried as the range of the numbers; the one with the least squared error is taken.
/// On SmolLM2-135M the error is 0.073 of the weights, and 0.083 with the whole range (docs/performance.md).
const PARTS: [f32; 6] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75];
/// Rows of outputs that are read at a time.
const STRIP: usize = 64;

/// How a weight `[·, ·]` is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockLayout {
    /// `[out, in]`, as in checkpoints
    OutIn,
    /// `[in, out]`, as products in a graph read it
    InOut,
}

/// A weight of a linear layer.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub(super) tensor: Tensor,
    pub(super) layout: BlockLayout,
}

/// What stands for a weight, as `MatMulNBits` takes it.
#[derive(Debug)]
pub(super) struct Blocks {
    /// u8 `[out, blocks, 16]`, two numbers a byte, the first in the low half
    pub(super) numbers: Tensor,
    /// `[out, blocks]`, in the element type of the weight
    pub(super) scales: Tensor,
    /// u8 `[out, ⌈blocks/2⌉]`, packed as the numbers are
    pub(super) zeros: Tensor,
}

impl Matrix {
    pub(super) fn outputs(&self) -> usize {
        self.tensor.dims()[usize::from(self.layout == BlockLayout::InOut)] as usize
    }

    pub(super) fn inputs(&self) -> usize {
        self.tensor.dims()[usize::from(self.layout == BlockLayout::OutIn)] as usize
    }

    /// The weight in blocks; its inputs are a multiple of [`BLOCK`].
    pub(super) fn blocks(self) -> Blocks {
        let (out, blocks) = (self.outputs() as u64, (self.inputs() / BLOCK) as u64);
        let dtype = self.tensor.dtype();
        let part = |part| Arc::new(BlockPart { matrix: self.clone(), part });
        let scales = Tensor::computed(DType::F32, vec![out, blocks], part(What::Scales)).cast(dtype);
        let numbers = vec![out, blocks, BLOCK as u64 / 2];
        Blocks {
            numbers: Tensor::computed(DType::U8, numbers, part(What::Numbers)),
            scales,
            zeros: Tensor::computed(DType::U8, vec![out, blocks.div_ceil(2)], part(What::Zeros)),
        }
    }

    /// Hands out the inputs of a few outputs at a time, output by output.
    fn read(&self, take: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) {
        let strips = (0..self.outputs()).step_by(STRIP);
        let mut strips = strips.map(|start| start..(start + STRIP).min(self.outputs()));
        let _ = match self.layout {
            BlockLayout::OutIn => strips.try_for_each(|rows| take(&self.tensor.rows(rows).to_f32())),
            BlockLayout::InOut => {
                let bytes = self.tensor.bytes();
                strips.try_for_each(|columns| take(&self.columns(&bytes, columns)))
            }
        };
    }

    /// Columns of an `[in, out]` weight, one after the other.
    fn columns(&self, bytes: &[u8], columns: Range<usize>) -> Vec<f32> {
        let size = self.tensor.dtype().size();
        let (width, count) = (self.outputs(), columns.len());
        let row = |row: usize| &bytes[(row * width + columns.start) * size..][..count * size];
        let cut: Vec<u8> = (0..self.inputs()).flat_map(row).copied().collect();
        let dims = vec![self.inputs() as u64, count as u64];
        let cut = Tensor::from_bytes(self.tensor.dtype(), dims, cut).map(|t| t.to_f32()).unwrap_or_default();
        (0..count).flat_map(|column| cut.iter().skip(column).step_by(count).copied()).collect()
    }
}

#[derive(Clone, Copy)]
enum What {
    Numbers,
    Scales,
    Zeros,
}

/// One of the tensors of [`Blocks`].
struct BlockPart {
    matrix: Matrix,
    part: What,
}

impl Elements for BlockPart {
    fn read(&self, take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
        let (width, dtype) = (self.matrix.inputs(), self.matrix.tensor.dtype());
        self.matrix.read(&mut |strip| {
            let mut out = Vec::new();
            for row in strip.chunks_exact(width) {
                let codes = row.chunks_exact(BLOCK).map(|block| Code::of(block, dtype));
                match self.part {
                    What::Scales => codes.for_each(|code| out.extend(code.scale.to_le_bytes())),
                    What::Zeros => pack(codes.map(|code| code.zero), &mut out),
                    What::Numbers => {
                        let blocks = row.chunks_exact(BLOCK).zip(codes);
                        pack(
                            blocks.flat_map(|(block, code)| block.iter().map(move |x| code.number(*x))),
                            &mut out,
                        );
                    }
                }
            }
            take(&out)
        });
    }

    fn problem(&self) -> Option<ReadError> {
        self.matrix.tensor.problem()
    }
}

/// Two numbers a byte, the first in the low half.
fn pack(numbers: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    let mut numbers = numbers;
    while let Some(low) = numbers.next() {
        out.push(low | numbers.next().unwrap_or(0) << 4);
    }
}

/// x ≈ (number - zero) · scale
#[derive(Clone, Copy, Debug, PartialEq)]
struct Code {
    scale: f32,
    /// Of the scale; 0 where that is 0.
    inverse: f32,
    zero: u8,
}

/// Numbers whose errors are summed side by side, as a processor does them.
const LANES: usize = 8;
/// Added and taken away, it leaves a small f32 rounded: what the processor does in any number of lanes.
const ROUNDS: f32 = 12_582_912.0;

impl Code {
    /// For scales that are stored in `dtype`. The scale of numbers that are not finite is none either.
    fn of(block: &[f32], dtype: DType) -> Self {
        if block.iter().any(|x| !x.is_finite()) {
            return Self { scale: f32::NAN, inverse: 0.0, zero: 0 };
        }
        let low = block.iter().fold(0.0, |m: f32, x| m.min(*x));
        let high = block.iter().fold(0.0, |m: f32, x| m.max(*x));
        let codes = PARTS.map(|part| Self::between(low * part, high * part, dtype));
        let mut best = (f32::INFINITY, codes[0]);
        for code in codes {
            let error = code.error(block);
            if error < best.0 {
                best = (error, code);
            }
        }
        best.1
    }

    /// The numbers 0 to 15 from `low` to `high`, where zero is one of them.
    fn between(low: f32, high: f32, dtype: DType) -> Self {
        let scale = rounded(dtype, (high - low) / LARGEST);
        if scale == 0.0 {
            return Self { scale, inverse: 0.0, zero: 0 };
        }
        Self { scale, inverse: scale.recip(), zero: (-low / scale).round().min(LARGEST) as u8 }
    }

    /// The sum of squares of what is lost.
    fn error(self, block: &[f32]) -> f32 {
        let mut sums = [0.0; LANES];
        for part in block.chunks_exact(LANES) {
            for (sum, x) in sums.iter_mut().zip(part) {
                let lost = self.value(*x) - x;
                *sum += lost * lost;
            }
        }
        sums.iter().sum()
    }

    fn number(self, x: f32) -> u8 {
        self.step(x) as u8
    }

    fn step(self, x: f32) -> f32 {
        (x * self.inverse + f32::from(self.zero)).clamp(0.0, LARGEST) + ROUNDS - ROUNDS
    }

    /// What stands for x.
    fn value(self, x: f32) -> f32 {
        (self.step(x) - f32::from(self.zero)) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::random::Random;

    const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    fn normal(count: usize) -> Vec<f32> {
        let mut random = Random::new(3);
        (0..count).map(|_| random.normal() as f32).collect()
    }

    /// Half a step away inside the range; nothing is moved further than the whole range would have it.
    #[test]
    fn a_block_is_near_what_it_stands_for() {
        let whole = |block: &[f32], dtype| {
            let ends = |f: fn(f32, f32) -> f32| block.iter().copied().fold(0.0, f);
            Code::between(ends(f32::min), ends(f32::max), dtype)
        };
        let error =
            |code: Code, block: &[f32]| -> f32 { block.iter().map(|x| (code.value(*x) - x).powi(2)).sum() };
        for dtype in DTYPES {
            for block in normal(BLOCK * 50).chunks_exact(BLOCK) {
                let (code, plain) = (Code::of(block, dtype), whole(block, dtype));
                assert!(error(code, block) <= error(plain, block));
                assert_eq!(code.value(0.0), 0.0);
                for x in block {
                    // The step was rounded to `dtype`: 15 of them may end half of 2⁻⁸ of the range early.
                    let most = plain.scale * (0.5 + 15.0 / 256.0);
                    assert!((plain.value(*x) - x).abs() <= most, "{x} in {plain:?}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_one_sign_of_nothing_and_of_nan() {
        let ramp: Vec<f32> = (0..BLOCK).map(|i| 1.0 + i as f32 / 31.0).collect();
        assert_eq!(Code::of(&ramp, DType::F32).zero, 0);
        let falling: Vec<f32> = ramp.iter().map(|x| -x).collect();
        assert_eq!(Code::of(&falling, DType::F32).zero, 15);
        let nothing = Code::of(&[0.0; BLOCK], DType::F16);
        assert_eq!((nothing.scale, nothing.value(0.0)), (0.0, 0.0));
        assert!(Code::of(&[f32::INFINITY, 1.0], DType::F32).scale.is_nan());
    }

    #[test]
    fn both_layouts_give_the_same_blocks() {
        let (out, inputs) = (STRIP + 3, 3 * BLOCK);
        let values = normal(out * inputs);
        let transposed: Vec<f32> = (0..inputs)
            .flat_map(|i| (0..out).map(move |o| (o, i)))
            .map(|(o, i)| values[o * inputs + i])
            .collect();
        let rows = Tensor::from_f32(&[out as u64, inputs as u64], &values);
        let columns = Tensor::from_f32(&[inputs as u64, out as u64], &transposed);
        for dtype in DTYPES {
            let a = Matrix { tensor: rows.cast(dtype), layout: BlockLayout::OutIn }.blocks();
            let b = Matrix { tensor: columns.cast(dtype), layout: BlockLayout::InOut }.blocks();
            for (a, b) in [(&a.numbers, &b.numbers), (&a.scales, &b.scales), (&a.zeros, &b.zeros)] {
                assert_eq!(a.bytes(), b.bytes());
                assert_eq!(a.bytes().len(), a.byte_len());
            }
            assert_eq!(a.zeros.dims(), [out as u64, 2]);
        }
    }
}
