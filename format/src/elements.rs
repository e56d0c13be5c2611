//! Numbers as little-endian bytes, and from one element type to another.

use crate::dtype::DType;
use half::{bf16, f16};

/// Appends the elements `bytes` of one type to `out` in another, rounded to nearest.
pub fn convert(from: DType, bytes: &[u8], to: DType, out: &mut Vec<u8>) {
    match (from, to) {
        (DType::F16, DType::F32) => {
            for b in bytes.chunks_exact(2) {
                out.extend_from_slice(&f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes());
            }
        }
        (DType::BF16, DType::F32) => {
            for b in bytes.chunks_exact(2) {
                out.extend_from_slice(&[0, 0, b[0], b[1]]);
            }
        }
        (DType::F32, DType::F16) => {
            for b in bytes.chunks_exact(4) {
                let x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                out.extend_from_slice(&f16::from_f32(x).to_le_bytes());
            }
        }
        (DType::BF16, DType::F16) => {
            for b in bytes.chunks_exact(2) {
                let x = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                out.extend_from_slice(&f16::from_f32(x).to_le_bytes());
            }
        }
        (DType::F32, DType::BF16) => {
            for b in bytes.chunks_exact(4) {
                let x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                out.extend_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
        }
        _ => {
            for b in bytes.chunks_exact(from.size()) {
                out.extend_from_slice(&encode(to, decode(from, b)));
            }
        }
    }
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
    if dtype == DType::F32 {
        return bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    }
    let mut wide = Vec::with_capacity(bytes.len() / dtype.size() * 4);
    convert(dtype, bytes, DType::F32, &mut wide);
    to_f32(DType::F32, &wide)
}

/// f32 numbers as elements.
pub fn from_f32(dtype: DType, values: &[f32]) -> Vec<u8> {
    let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    if dtype == DType::F32 {
        return wide;
    }
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    convert(DType::F32, &wide, dtype, &mut bytes);
    bytes
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

    #[test]
    fn numbers_are_rounded_to_nearest() {
        assert_eq!(rounded(DType::F16, 1.0 + 3.0 / 4096.0), 1.0 + 1.0 / 1024.0);
        assert_eq!(rounded(DType::BF16, 1.0 + 3.0 / 512.0), 1.0 + 1.0 / 128.0);
        assert_eq!(rounded(DType::F32, 0.1), 0.1);
    }
}
