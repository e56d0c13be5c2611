//! The element types of GGUF: what a block of each takes, and which are read.

use super::blocks;
use dijiang_format::dtype::DType;

/// An element type. A block of so many elements takes so many bytes.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) id: u32,
    pub(super) name: &'static str,
    pub(super) block: usize,
    pub(super) bytes: usize,
    pub(super) how: How,
}

/// How elements are read.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    /// As they are.
    Plain(DType),
    /// A block at a time, to f32.
    Blocks(fn(&[u8], &mut [f32])),
    /// Not at all.
    Not,
}

impl Kind {
    /// What its elements are once they are read.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self.how {
            How::Plain(dtype) => Some(dtype),
            How::Blocks(_) => Some(DType::F32),
            How::Not => None,
        }
    }

    pub(super) fn is_quantised(&self) -> bool {
        matches!(self.how, How::Blocks(_))
    }
}

const fn plain(id: u32, name: &'static str, bytes: usize, dtype: DType) -> Kind {
    Kind { id, name, block: 1, bytes, how: How::Plain(dtype) }
}

const fn blocks(
    id: u32,
    name: &'static str,
    [block, bytes]: [usize; 2],
    decode: fn(&[u8], &mut [f32]),
) -> Kind {
    Kind { id, name, block, bytes, how: How::Blocks(decode) }
}

const fn not(id: u32, name: &'static str, [block, bytes]: [usize; 2]) -> Kind {
    Kind { id, name, block, bytes, how: How::Not }
}

/// Every type that llama.cpp writes, by its number.
const KINDS: &[Kind] = &[
    plain(0, "F32", 4, DType::F32),
    plain(1, "F16", 2, DType::F16),
    blocks(2, "Q4_0", [32, 18], blocks::q4_0),
    blocks(3, "Q4_1", [32, 20], blocks::q4_1),
    blocks(6, "Q5_0", [32, 22], blocks::q5_0),
    blocks(7, "Q5_1", [32, 24], blocks::q5_1),
    blocks(8, "Q8_0", [32, 34], blocks::q8_0),
    not(9, "Q8_1", [32, 40]),
    blocks(10, "Q2_K", [256, 84], blocks::q2_k),
    blocks(11, "Q3_K", [256, 110], blocks::q3_k),
    blocks(12, "Q4_K", [256, 144], blocks::q4_k),
    blocks(13, "Q5_K", [256, 176], blocks::q5_k),
    blocks(14, "Q6_K", [256, 210], blocks::q6_k),
    not(15, "Q8_K", [256, 292]),
    not(16, "IQ2_XXS", [256, 66]),
    not(17, "IQ2_XS", [256, 74]),
    not(18, "IQ3_XXS", [256, 98]),
    not(19, "IQ1_S", [256, 50]),
    not(20, "IQ4_NL", [32, 18]),
    not(21, "IQ3_S", [256, 110]),
    not(22, "IQ2_S", [256, 82]),
    not(23, "IQ4_XS", [256, 136]),
    not(24, "I8", [1, 1]),
    not(25, "I16", [1, 2]),
    not(26, "I32", [1, 4]),
    not(27, "I64", [1, 8]),
    plain(28, "F64", 8, DType::F64),
    not(29, "IQ1_M", [256, 56]),
    plain(30, "BF16", 2, DType::BF16),
    not(34, "TQ1_0", [256, 54]),
    not(35, "TQ2_0", [256, 66]),
    not(39, "MXFP4", [32, 17]),
    not(40, "NVFP4", [64, 36]),
];

pub(super) fn find(id: u32) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.id == id)
}

/// Those that are read.
pub(super) fn read() -> String {
    let read = KINDS.iter().filter(|kind| kind.dtype().is_some());
    read.map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_stands_twice() {
        assert!(KINDS.is_sorted_by(|a, b| a.id < b.id));
    }
}
