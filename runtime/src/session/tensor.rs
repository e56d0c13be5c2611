//! A dense tensor in host memory: what goes into a session and comes out of it.

use dijiang_format::dtype::DType;
use dijiang_format::elements;

/// A tensor that cannot be made, cut or read as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The data does not fill the shape.
    #[error("a {dtype} tensor of shape {shape:?} takes {expected} bytes, {found} were given")]
    Length {
        /// Element type.
        dtype: DType,
        /// Shape asked for.
        shape: Vec<usize>,
        /// Bytes the shape takes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The shape has more elements than memory has addresses.
    #[error("a {dtype} tensor of shape {shape:?} does not fit in memory")]
    TooLarge {
        /// Element type.
        dtype: DType,
        /// Shape asked for.
        shape: Vec<usize>,
    },
    /// The elements are of a type that cannot be read this way.
    #[error("a {found} tensor cannot be read as {wanted}; convert it first")]
    Kind {
        /// What was asked for.
        wanted: &'static str,
        /// The tensor's element type.
        found: DType,
    },
    /// An axis or range lies outside the tensor.
    #[error("elements {start}..{end} of axis {axis} lie outside a tensor of shape {shape:?}")]
    Range {
        /// The axis.
        axis: usize,
        /// First index asked for.
        start: usize,
        /// One past the last index asked for.
        end: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// Tensors to be joined differ in dtype or in another axis.
    #[error(
        "a {found_dtype} tensor of shape {found:?} cannot be joined to a {dtype} tensor of shape {shape:?} on axis {axis}"
    )]
    Join {
        /// The axis to join on.
        axis: usize,
        /// The first tensor's dtype.
        dtype: DType,
        /// The first tensor's shape.
        shape: Vec<usize>,
        /// The other tensor's dtype.
        found_dtype: DType,
        /// The other tensor's shape.
        found: Vec<usize>,
    },
    /// Nothing was given to join.
    #[error("no tensors were given to join; give at least one")]
    JoinNothing,
}

/// A dense row-major tensor in host memory, little-endian.
///
/// The data always fills the shape exactly; a shape with a zero dimension holds no bytes, an empty shape one element.
#[derive(Clone, PartialEq)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTensor({} {:?})", self.dtype, self.shape)
    }
}

impl HostTensor {
    /// Wraps little-endian bytes; an error when they do not fill `shape`.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Vec<u8>) -> Result<Self, TensorError> {
        let expected = byte_len(dtype, &shape)?;
        if expected != data.len() {
            let found = data.len();
            return Err(TensorError::Length { dtype, shape, expected, found });
        }
        Ok(Self { dtype, shape, data })
    }

    /// An f32 tensor; an error when `values` does not fill `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Self, TensorError> {
        Self::new(DType::F32, shape.to_vec(), elements::to_bytes(values, f32::to_le_bytes))
    }

    /// An i64 tensor; an error when `values` does not fill `shape`.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Result<Self, TensorError> {
        Self::new(DType::I64, shape.to_vec(), elements::to_bytes(values, i64::to_le_bytes))
    }

    /// An i32 tensor; an error when `values` does not fill `shape`.
    pub fn from_i32(shape: &[usize], values: &[i32]) -> Result<Self, TensorError> {
        Self::new(DType::I32, shape.to_vec(), elements::to_bytes(values, i32::to_le_bytes))
    }

    /// A bool tensor; an error when `values` does not fill `shape`.
    pub fn from_bool(shape: &[usize], values: &[bool]) -> Result<Self, TensorError> {
        Self::new(DType::Bool, shape.to_vec(), elements::to_bytes(values, |v| [u8::from(v)]))
    }

    /// A tensor of zero bytes.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        let len = byte_len(dtype, shape)?;
        Ok(Self { dtype, shape: shape.to_vec(), data: vec![0; len] })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major and little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The elements without their shape.
    pub fn into_bytes(self) -> Vec<u8> {
        self.data
    }

    /// Bytes held.
    pub fn byte_len(&self) -> usize {
        self.data.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements as f32, from f16, bf16, f32 or f64; an error for any other dtype.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        match self.dtype {
            dtype if dtype.is_float() => Ok(elements::to_f32(dtype, &self.data)),
            found => Err(TensorError::Kind { wanted: "floats", found }),
        }
    }

    /// The elements as i64, from any signed integer, u8 or bool; an error for any other dtype.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        match self.dtype {
            DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => {
                let all = self.data.chunks_exact(self.dtype.size());
                Ok(all.map(|element| elements::decode_int(self.dtype, element)).collect())
            }
            found => Err(TensorError::Kind { wanted: "integers", found }),
        }
    }

    /// The same values in another float dtype (f32, f16 or bf16), rounded to nearest.
    pub fn to_float(&self, dtype: DType) -> Result<Self, TensorError> {
        let floats = self.to_f32()?;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(TensorError::Kind { wanted: "f32, f16 or bf16", found: dtype });
        }
        Self::new(dtype, self.shape.clone(), elements::from_f32(dtype, &floats))
    }

    /// The elements `start..end` of one axis, all of the others.
    pub fn slice(&self, axis: usize, start: usize, end: usize) -> Result<Self, TensorError> {
        let extent = self.shape.get(axis).copied();
        if start > end || extent.is_none_or(|n| end > n) {
            return Err(TensorError::Range { axis, start, end, shape: self.shape.clone() });
        }
        let inner = self.stride(axis);
        let row = self.shape[axis] * inner;
        let mut shape = self.shape.clone();
        shape[axis] = end - start;
        let mut data = Vec::with_capacity(byte_len(self.dtype, &shape)?);
        // A zero stride would make `chunks_exact` panic, and there is nothing to copy then.
        if row > 0 {
            for chunk in self.data.chunks_exact(row) {
                data.extend_from_slice(&chunk[start * inner..end * inner]);
            }
        }
        Ok(Self { dtype: self.dtype, shape, data })
    }

    /// Joins tensors along one axis; they must agree in dtype and in all other axes.
    pub fn concat(axis: usize, tensors: &[&HostTensor]) -> Result<Self, TensorError> {
        let first = *tensors.first().ok_or(TensorError::JoinNothing)?;
        if axis >= first.shape.len() {
            return Err(TensorError::Range { axis, start: 0, end: 0, shape: first.shape.clone() });
        }
        for other in tensors {
            first.check_joins(other, axis)?;
        }
        let mut shape = first.shape.clone();
        shape[axis] = tensors.iter().map(|t| t.shape[axis]).sum();
        let outer: usize = first.shape[..axis].iter().product();
        let mut data = Vec::with_capacity(byte_len(first.dtype, &shape)?);
        for i in 0..outer {
            for tensor in tensors {
                let row = tensor.shape[axis] * tensor.stride(axis);
                data.extend_from_slice(&tensor.data[i * row..(i + 1) * row]);
            }
        }
        Ok(Self { dtype: first.dtype, shape, data })
    }

    /// Some places of the first axis, in this order; a place may come several times.
    pub fn rows(&self, rows: &[usize]) -> Result<Self, TensorError> {
        let extent = self.shape.first().copied().unwrap_or(0);
        let outside = |end: usize| TensorError::Range { axis: 0, start: 0, end, shape: self.shape.clone() };
        if self.shape.is_empty() || rows.iter().any(|row| *row >= extent) {
            return Err(outside(rows.iter().max().map_or(0, |row| row + 1)));
        }
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let mut data = Vec::with_capacity(byte_len(self.dtype, &shape)?);
        let width = self.stride(0);
        rows.iter().for_each(|row| data.extend_from_slice(&self.data[row * width..(row + 1) * width]));
        Ok(Self { dtype: self.dtype, shape, data })
    }

    /// Bytes between neighbours on `axis`.
    fn stride(&self, axis: usize) -> usize {
        self.shape[axis + 1..].iter().product::<usize>() * self.dtype.size()
    }

    fn check_joins(&self, other: &HostTensor, axis: usize) -> Result<(), TensorError> {
        let same_rank = self.shape.len() == other.shape.len();
        let same_dims = || (0..self.shape.len()).all(|i| i == axis || self.shape[i] == other.shape[i]);
        if self.dtype == other.dtype && same_rank && same_dims() {
            return Ok(());
        }
        Err(TensorError::Join {
            axis,
            dtype: self.dtype,
            shape: self.shape.clone(),
            found_dtype: other.dtype,
            found: other.shape.clone(),
        })
    }
}

/// Bytes a tensor takes; an error instead of an overflow.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
    shape
        .iter()
        .try_fold(dtype.size(), |len, &dim| len.checked_mul(dim))
        .filter(|&len| isize::try_from(len).is_ok())
        .ok_or_else(|| TensorError::TooLarge { dtype, shape: shape.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iota(shape: &[usize]) -> HostTensor {
        let n: usize = shape.iter().product();
        HostTensor::from_f32(shape, &(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn data_must_fill_the_shape() {
        let error = HostTensor::from_f32(&[2, 2], &[1.0]).unwrap_err();
        assert_eq!(error.to_string(), "a f32 tensor of shape [2, 2] takes 16 bytes, 4 were given");
        assert_eq!(HostTensor::from_i64(&[], &[7]).unwrap().to_i64().unwrap(), [7]);
        assert!(HostTensor::zeros(DType::F32, &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn floats_survive_every_float_dtype() {
        let tensor = HostTensor::from_f32(&[3], &[1.0, -0.5, 256.0]).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let cast = tensor.to_float(dtype).unwrap();
            assert_eq!(cast.byte_len(), 3 * dtype.size());
            assert_eq!(cast.to_f32().unwrap(), [1.0, -0.5, 256.0]);
        }
        assert!(tensor.to_i64().is_err());
        assert!(HostTensor::from_i64(&[1], &[1]).unwrap().to_f32().is_err());
    }

    #[test]
    fn slices_join_back_to_the_whole_on_every_axis() {
        let whole = iota(&[2, 3, 4]);
        for axis in 0..3 {
            for cut in 0..=whole.shape()[axis] {
                let left = whole.slice(axis, 0, cut).unwrap();
                let right = whole.slice(axis, cut, whole.shape()[axis]).unwrap();
                assert_eq!(HostTensor::concat(axis, &[&left, &right]).unwrap(), whole);
            }
        }
        assert_eq!(
            whole.slice(1, 1, 2).unwrap().to_f32().unwrap(),
            [4.0, 5.0, 6.0, 7.0, 16.0, 17.0, 18.0, 19.0]
        );
    }

    #[test]
    fn rows_come_in_the_order_that_is_asked_for() {
        let whole = iota(&[3, 2]);
        let found = whole.rows(&[2, 0, 2]).unwrap();
        assert_eq!(
            (found.shape(), found.to_f32().unwrap()),
            (&[3, 2][..], vec![4.0, 5.0, 0.0, 1.0, 4.0, 5.0])
        );
        assert!(whole.rows(&[3]).is_err() && iota(&[]).rows(&[0]).is_err());
    }

    #[test]
    fn bad_ranges_and_joins_are_errors() {
        let a = iota(&[2, 3]);
        assert!(a.slice(2, 0, 1).is_err());
        assert!(a.slice(0, 1, 3).is_err());
        assert!(a.slice(0, 2, 1).is_err());
        assert!(HostTensor::concat(0, &[]).is_err());
        assert!(HostTensor::concat(5, &[&a]).is_err());
        assert!(HostTensor::concat(0, &[&a, &iota(&[2, 4])]).is_err());
        assert!(HostTensor::concat(0, &[&a, &HostTensor::zeros(DType::F16, &[2, 3]).unwrap()]).is_err());
    }
}
