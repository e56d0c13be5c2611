//! The integer inputs of a graph: ids, masks and positions, of 64 or of 32 bits.

use crate::ort::program::{DeviceTensor, Program};
use crate::session::error::{RuntimeError, bad_call};
use crate::session::tensor::HostTensor;
use dijiang_format::dtype::DType;

/// Rows of equal length as a tensor `[rows, columns]` of i32 or i64.
pub(crate) fn tensor(
    name: &'static str,
    dtype: DType,
    rows: &[Vec<i64>],
) -> Result<HostTensor, RuntimeError> {
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    let values = rows.concat();
    Ok(match dtype {
        DType::I32 => HostTensor::from_i32(&shape, &narrowed(name, &values)?)?,
        _ => HostTensor::from_i64(&shape, &values)?,
    })
}

/// An integer input, which is copied to the device only where it is not what is there already.
#[derive(Debug)]
pub(crate) struct Integers {
    /// What the graph calls them.
    pub(crate) name: &'static str,
    pub(crate) tensor: DeviceTensor,
    pub(crate) there: Vec<i64>,
}

impl Integers {
    /// Zeros of a shape, where a program computes.
    pub(crate) fn new(
        program: &Program,
        name: &'static str,
        dtype: DType,
        shape: [usize; 2],
    ) -> Result<Self, RuntimeError> {
        Ok(Self::at(name, program.allocate(dtype, &shape)?))
    }

    /// Zeros that lie there already.
    pub(crate) fn at(name: &'static str, tensor: DeviceTensor) -> Self {
        let there = vec![0; tensor.shape().iter().product()];
        Self { name, tensor, there }
    }

    pub(crate) fn put(&mut self, rows: &[Vec<i64>]) -> Result<(), RuntimeError> {
        let values = rows.concat();
        if values != self.there {
            self.tensor.write(&tensor(self.name, self.tensor.dtype(), rows)?)?;
            self.there = values;
        }
        Ok(())
    }

    /// A run wrote `values` to `tensor`, which may be this one.
    pub(crate) fn found(&mut self, tensor: &DeviceTensor, values: &[i64]) {
        if self.tensor.is_same(tensor) {
            self.there = values.to_vec();
        }
    }

    pub(crate) fn clear(&mut self) -> Result<(), RuntimeError> {
        self.there.fill(0);
        self.tensor.clear()
    }
}

/// For a graph that takes 32 bits.
fn narrowed(name: &'static str, values: &[i64]) -> Result<Vec<i32>, RuntimeError> {
    let narrow = |value: &i64| {
        i32::try_from(*value).map_err(|_| {
            bad_call(name, format!("{value} was given, and the graph takes 32 bits, {} at most", i32::MAX))
        })
    };
    values.iter().map(narrow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::names::IDS;

    #[test]
    fn what_does_not_fit_into_32_bits_is_refused() {
        assert_eq!(narrowed(IDS, &[0, -1, 1 << 30]).unwrap(), [0, -1, 1 << 30]);
        let refused = narrowed(IDS, &[7, 1 << 32]).unwrap_err().to_string();
        assert_eq!(
            refused,
            "input_ids: 4294967296 was given, and the graph takes 32 bits, 2147483647 at most"
        );
    }
}
