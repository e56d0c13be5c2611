//! Constant tensors: shared views of bytes that are usually a mapped file, read only when asked.

use dijiang_format::dtype::DType;
use dijiang_format::elements::{self, convert, decode, decode_int, encode};
use std::borrow::Cow;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Bytes that several tensors may look into, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A constant: `dtype`, `dims` and the elements in row-major order, little-endian.
///
/// The elements are a view into [`SharedBytes`], or a view of another element type that is
/// converted block by block while it is read ([`Tensor::cast`]), or worked out while they are read
/// ([`Tensor::computed`]); none holds a copy.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    dims: Vec<u64>,
    data: Data,
}

#[derive(Clone)]
enum Data {
    View { owner: SharedBytes, offset: usize, len: usize },
    Cast(Arc<Tensor>),
    Computed(Arc<dyn Elements>),
}

/// Elements that are worked out while they are read.
pub trait Elements: Send + Sync {
    /// Hands out the bytes in order, whole elements and a bounded number at a time, until `take` breaks off.
    fn read(&self, take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>);
}

/// Elements converted at a time by [`Tensor::for_each_block`].
const BLOCK: usize = 64 * 1024;

/// Dims and bytes do not agree.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("a tensor {dtype}{dims:?} takes {expected} bytes, but {found} are there")]
pub struct TensorSizeError {
    pub dtype: DType,
    pub dims: Vec<u64>,
    pub expected: String,
    pub found: usize,
}

impl Tensor {
    /// A view of `len` bytes at `offset` of `owner`.
    pub fn view(
        dtype: DType,
        dims: Vec<u64>,
        owner: SharedBytes,
        offset: usize,
        len: usize,
    ) -> Result<Self, TensorSizeError> {
        let expected = byte_len(dtype, &dims);
        let there = (*owner).as_ref().len().saturating_sub(offset).min(len);
        if expected != Some(len) || there != len {
            let expected = expected.map_or("more than can be counted".to_owned(), |n| n.to_string());
            return Err(TensorSizeError { dtype, dims, expected, found: there });
        }
        Ok(Self { dtype, dims, data: Data::View { owner, offset, len } })
    }

    /// A tensor that owns its bytes.
    pub fn from_bytes(dtype: DType, dims: Vec<u64>, bytes: Vec<u8>) -> Result<Self, TensorSizeError> {
        let len = bytes.len();
        Self::view(dtype, dims, Arc::new(bytes), 0, len)
    }

    /// An f32 tensor. Panics if `values` does not fill `dims`: both come from our own code.
    pub fn from_f32(dims: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_bytes(DType::F32, dims.to_vec(), bytes).expect("values fill dims")
    }

    /// An i64 tensor. Panics if `values` does not fill `dims`: both come from our own code.
    pub fn from_i64(dims: &[u64], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_bytes(DType::I64, dims.to_vec(), bytes).expect("values fill dims")
    }

    /// One number of the given element type, rank 0.
    pub fn scalar(dtype: DType, value: f64) -> Self {
        let bytes = encode(dtype, value);
        Self::from_bytes(dtype, Vec::new(), bytes).expect("one element")
    }

    /// A tensor whose elements are worked out whenever they are read; they fill `dims`.
    pub fn computed(dtype: DType, dims: Vec<u64>, elements: Arc<dyn Elements>) -> Self {
        Self { dtype, dims, data: Data::Computed(elements) }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    pub fn len(&self) -> usize {
        self.dims.iter().product::<u64>() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The same numbers as another element type. Nothing is converted before it is read.
    #[must_use]
    pub fn cast(&self, dtype: DType) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        Self { dtype, dims: self.dims.clone(), data: Data::Cast(Arc::new(self.clone())) }
    }

    /// The same elements under other dims of the same count.
    pub fn with_dims(&self, dims: Vec<u64>) -> Result<Self, TensorSizeError> {
        if byte_len(self.dtype, &dims) != Some(self.byte_len()) {
            return Err(TensorSizeError {
                dtype: self.dtype,
                expected: format!("{:?}", byte_len(self.dtype, &dims)),
                dims,
                found: self.byte_len(),
            });
        }
        let data = match &self.data {
            Data::View { .. } | Data::Computed(_) => self.data.clone(),
            Data::Cast(from) => Data::Cast(Arc::new(from.with_dims(dims.clone())?)),
        };
        Ok(Self { dtype: self.dtype, dims, data })
    }

    /// The elements' bytes; borrowed where no conversion is needed.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.data {
            Data::View { owner, offset, len } => Cow::Borrowed(&(**owner).as_ref()[*offset..*offset + *len]),
            Data::Cast(_) | Data::Computed(_) => {
                let mut out = Vec::with_capacity(self.byte_len());
                let all: Result<(), std::convert::Infallible> = self.for_each_block(&mut |block| {
                    out.extend_from_slice(block);
                    Ok(())
                });
                let Ok(()) = all;
                Cow::Owned(out)
            }
        }
    }

    /// Rows of the leading axis. Panics on rows that are not there, as an index does.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let row = self.byte_len() / self.dims.first().map_or(1, |n| (*n as usize).max(1));
        let (start, len) = (rows.start * row, rows.len() * row);
        let mut dims = self.dims.clone();
        dims[0] = rows.len() as u64;
        let data = match &self.data {
            Data::View { owner, offset, len: whole } => {
                assert!(start + len <= *whole, "rows {rows:?} of {self:?}");
                Data::View { owner: owner.clone(), offset: offset + start, len }
            }
            Data::Cast(from) => Data::Cast(Arc::new(from.rows(rows))),
            Data::Computed(_) => {
                let owner = Arc::new(self.bytes()[start..start + len].to_vec());
                Data::View { owner, offset: 0, len }
            }
        };
        Self { dtype: self.dtype, dims, data }
    }

    /// Whether the elements lie converted in memory or in a file, so that they can be copied as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self.data, Data::View { .. })
    }

    /// Bytes that lie in memory or in a file for the elements, before they are converted: none where they are worked
    /// out.
    pub fn held_bytes(&self) -> usize {
        match &self.data {
            Data::View { len, .. } => *len,
            Data::Cast(from) => from.held_bytes(),
            Data::Computed(_) => 0,
        }
    }

    /// Hands out the elements' bytes in order, a bounded block at a time.
    pub fn for_each_block<E>(&self, take: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match &self.data {
            Data::View { .. } => self.bytes().chunks(BLOCK * 8).try_for_each(take),
            Data::Cast(from) => {
                let mut out = Vec::with_capacity(BLOCK * self.dtype.size());
                from.for_each_block(&mut |block| {
                    for part in block.chunks(BLOCK * from.dtype.size()) {
                        out.clear();
                        convert(from.dtype, part, self.dtype, &mut out);
                        take(&out)?;
                    }
                    Ok(())
                })
            }
            Data::Computed(elements) => {
                let mut result = Ok(());
                elements.read(&mut |block| match take(block) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        result = Err(error);
                        ControlFlow::Break(())
                    }
                });
                result
            }
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        elements::to_f32(self.dtype, &self.bytes())
    }

    /// All elements as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        let bytes = self.bytes();
        bytes.chunks_exact(self.dtype.size()).map(|b| decode(self.dtype, b)).collect()
    }

    /// All elements as i64, where the element type is an integer or bool.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        if self.dtype.is_float() {
            return None;
        }
        let bytes = self.bytes();
        Some(bytes.chunks_exact(self.dtype.size()).map(|b| decode_int(self.dtype, b)).collect())
    }

    /// The number, if there is exactly one element (of any rank) and it can be read as a number.
    pub fn single(&self) -> Option<f64> {
        (self.len() == 1).then(|| self.to_f64()[0])
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.dims)
    }
}

/// Bytes of a tensor, or `None` where they cannot be counted in a `usize`.
fn byte_len(dtype: DType, dims: &[u64]) -> Option<usize> {
    let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    usize::try_from(elements.checked_mul(dtype.size() as u64)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_reads_the_same_numbers() {
        let x = Tensor::from_f32(&[3], &[1.0, -2.5, 65504.0]);
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            let y = x.cast(dtype).cast(DType::F32).to_f64();
            let exact = if dtype == DType::BF16 { vec![1.0, -2.5, 65536.0] } else { x.to_f64() };
            assert_eq!(y, exact, "{dtype}");
        }
    }

    #[test]
    fn narrow_casts_round_as_the_general_one() {
        let values: Vec<f32> =
            (0..2000).map(|i| (i as f32 - 1000.0) * 0.37).chain([f32::INFINITY, 1e-6]).collect();
        let x = Tensor::from_f32(&[values.len() as u64], &values);
        for (from, to) in [(DType::BF16, DType::F16), (DType::F32, DType::F16), (DType::F32, DType::BF16)] {
            let general = x.cast(from).cast(DType::F64).cast(to);
            assert_eq!(x.cast(from).cast(to).bytes(), general.bytes(), "{from} to {to}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        let e = Tensor::from_bytes(DType::F32, vec![2, 2], vec![0; 12]).expect_err("4 bytes are missing");
        assert_eq!(e.to_string(), "a tensor f32[2, 2] takes 16 bytes, but 12 are there");
        assert!(Tensor::from_bytes(DType::F32, vec![u64::MAX, 2], vec![]).is_err());
    }

    struct Count(u8);

    impl Elements for Count {
        fn read(&self, take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
            let _ = (0..self.0).try_for_each(|i| take(&[i, i + 100]));
        }
    }

    #[test]
    fn what_is_computed_reads_like_what_is_stored() {
        let x = Tensor::computed(DType::U8, vec![3, 2], Arc::new(Count(3)));
        assert_eq!((x.to_i64(), x.is_plain()), (Some(vec![0, 100, 1, 101, 2, 102]), false));
        assert_eq!(x.cast(DType::F16).to_f64(), [0.0, 100.0, 1.0, 101.0, 2.0, 102.0]);
        let mut taken = 0;
        let broken = x.for_each_block(&mut |_| {
            taken += 1;
            if taken == 2 { Err("enough") } else { Ok(()) }
        });
        assert_eq!((broken, taken), (Err("enough"), 2));
    }

    #[test]
    fn a_cast_holds_what_it_is_cast_from() {
        let x = Tensor::from_f32(&[3], &[0.0, 1.0, 2.0]);
        let computed = Tensor::computed(DType::U8, vec![3, 2], Arc::new(Count(3)));
        assert_eq!([x.held_bytes(), x.cast(DType::F16).held_bytes()], [12, 12]);
        assert_eq!([computed.held_bytes(), computed.cast(DType::F32).held_bytes()], [0, 0]);
        assert_eq!(x.rows(1..2).held_bytes(), 4);
    }

    #[test]
    fn rows_are_those_of_the_whole() {
        let x = Tensor::from_f32(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let computed = Tensor::computed(DType::U8, vec![3, 2], Arc::new(Count(3)));
        assert_eq!(x.rows(1..3).to_f32(), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(x.cast(DType::BF16).rows(2..3).to_f32(), [4.0, 5.0]);
        assert_eq!(computed.rows(1..2).to_f32(), [1.0, 101.0]);
        assert_eq!(x.rows(0..2).dims(), [2, 2]);
    }

    #[test]
    fn blocks_add_up_to_the_whole() {
        let values: Vec<f32> = (0..BLOCK * 3 + 7).map(|i| i as f32).collect();
        let x = Tensor::from_f32(&[values.len() as u64], &values).cast(DType::F64);
        assert_eq!(x.to_f64().last().copied(), Some((values.len() - 1) as f64));
    }
}
