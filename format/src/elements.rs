//! Numbers as little-endian bytes, and from one element type to another.

use crate::dtype::DType;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

/// Elements that are converted at once, so that processors do several in one step.
const BLOCK: usize = 4096;

/// Appends the elements `bytes` of one type to `out` in another, rounded to nearest.
pub fn convert(from: DType, bytes: &[u8], to: DType, out: &mut Vec<u8>) {
    let is_narrow = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    if is_narrow(from) && is_narrow(to) {
        for block in bytes.chunks(BLOCK * from.size()) {
            out.extend(from_f32(to, &to_f32(from, block)));
        }
        return;
    }
    for b in bytes.chunks_exact(from.size()) {
        out.extend_from_slice(&encode(to, decode(from, b)));
    }
}

/// Numbers as bytes.
pub fn to_bytes<T: Copy, const N: usize>(values: &[T], encode: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * N];
    let places = bytes.as_chunks_mut().0.iter_mut();
    places.zip(values).for_each(|(place, value)| *place = encode(*value));
    bytes
}

fn array<const N: usize>(b: &[u8]) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(b);
    a
}

/// One element as f64.
pub fn decode(dtype: DType, b: &[u8]) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(array(b)),
        DType::F32 => f32::from_le_bytes(array(b)).into(),
        DType::F16 => f16::from_le_bytes(array(b)).to_f64(),
        DType::BF16 => bf16::from_le_bytes(array(b)).to_f64(),
        DType::U64 => u64::from_le_bytes(array(b)) as f64,
        _ => decode_int(dtype, b) as f64,
    }
}

/// One element as i64; of a float, what is before the point.
pub fn decode_int(dtype: DType, b: &[u8]) -> i64 {
    match dtype {
        DType::I64 => i64::from_le_bytes(array(b)),
        DType::I32 => i32::from_le_bytes(array(b)).into(),
        DType::I16 => i16::from_le_bytes(array(b)).into(),
        DType::I8 => i8::from_le_bytes(array(b)).into(),
        DType::U64 => u64::from_le_bytes(array(b)) as i64,
        DType::U32 => u32::from_le_bytes(array(b)).into(),
        DType::U16 => u16::from_le_bytes(array(b)).into(),
        DType::U8 => b[0].into(),
        DType::Bool => i64::from(b[0] != 0),
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => decode(dtype, b) as i64,
    }
}

/// A number as an element, rounded to nearest.
pub fn encode(dtype: DType, x: f64) -> Vec<u8> {
    match dtype {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        DType::I64 => (x as i64).to_le_bytes().to_vec(),
        DType::I32 => (x as i32).to_le_bytes().to_vec(),
        DType::I16 => (x as i16).to_le_bytes().to_vec(),
        DType::I8 => (x as i8).to_le_bytes().to_vec(),
        DType::U64 => (x as u64).to_le_bytes().to_vec(),
        DType::U32 => (x as u32).to_le_bytes().to_vec(),
        DType::U16 => (x as u16).to_le_bytes().to_vec(),
        DType::U8 => vec![x as u8],
        DType::Bool => vec![u8::from(x != 0.0)],
    }
}

/// The elements as f32.
pub fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => {
            let stored: Vec<f16> = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
            let mut values = vec![0.0; stored.len()];
            stored.convert_to_f32_slice(&mut values);
            values
        }
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.chunks_exact(dtype.size()).map(|b| decode(dtype, b) as f32).collect(),
    }
}

/// f32 numbers as elements.
pub fn from_f32(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => to_bytes(values, f32::to_le_bytes),
        DType::F16 => {
            let mut stored = vec![f16::ZERO; values.len()];
            stored.convert_from_f32_slice(values);
            to_bytes(&stored, f16::to_le_bytes)
        }
        DType::BF16 => to_bytes(values, |x| bf16::from_f32(x).to_le_bytes()),
        _ => values.iter().flat_map(|x| encode(dtype, f64::from(*x))).collect(),
    }
}

/// The number as it is stored in a type.
pub fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_survive_every_float_type() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            assert_eq!(to_f32(dtype, &from_f32(dtype, &[0.0, -1.5, 96.0])), [0.0, -1.5, 96.0], "{dtype}");
        }
    }

    /// Every f16, and f32 numbers at, beside and between them, one at a time and several.
    #[test]
    fn many_at_once_are_what_each_is_alone() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let bytes = to_bytes(&all, f16::to_le_bytes);
        let wide = to_f32(DType::F16, &bytes);
        let is_same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(all.iter().zip(&wide).all(|(each, found)| is_same(each.to_f32(), *found)));
        let near: Vec<f32> = wide.iter().flat_map(|x| [*x, x * 1.000_488_3, x * (1.0 - 1e-6)]).collect();
        for (dtype, alone) in [
            (DType::F16, (|x| f16::from_f32(x).to_f32()) as fn(f32) -> f32),
            (DType::BF16, |x| bf16::from_f32(x).to_f32()),
        ] {
            let found = to_f32(dtype, &from_f32(dtype, &near));
            assert!(near.iter().zip(found).all(|(x, found)| is_same(alone(*x), found)), "{dtype}");
            let mut converted = Vec::new();
            convert(DType::F32, &to_bytes(&near, f32::to_le_bytes), dtype, &mut converted);
            assert_eq!(converted, from_f32(dtype, &near));
        }
    }

    #[test]
    fn numbers_are_rounded_to_nearest() {
        assert_eq!(rounded(DType::F16, 1.0 + 3.0 / 4096.0), 1.0 + 1.0 / 1024.0);
        assert_eq!(rounded(DType::BF16, 1.0 + 3.0 / 512.0), 1.0 + 1.0 / 128.0);
        assert_eq!(rounded(DType::F32, 0.1), 0.1);
    }
}
