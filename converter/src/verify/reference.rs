//! The source's own reference: token ids and the logits that the model's authors' code gives for them.
//!
//! A safetensors file with `input_ids` i64 `[batch, sequence]`, optionally `attention_mask` i64 of the same
//! shape, and `logits` f32 `[batch, sequence, vocab]`.

use super::VerifyError;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// The file as a checkpoint directory may hold it.
pub const FILE: &str = "reference.safetensors";

/// What was fed, and what came out.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) ids: Vec<Vec<i64>>,
    pub(super) mask: Vec<Vec<i64>>,
    /// Of the tokens that are no padding, row after row.
    pub(super) logits: Vec<f32>,
}

impl Reference {
    pub(super) fn read(path: &Path) -> Result<Self, VerifyError> {
        let fail = |reason: String| VerifyError::Model { file: path.display().to_string(), reason };
        let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
        let tensor = |name: &str, dtype: Dtype, rank: usize| {
            let tensor = file.tensor(name).map_err(|e| fail(e.to_string()))?;
            if tensor.dtype() != dtype || tensor.shape().len() != rank {
                let (found, shape) = (tensor.dtype(), tensor.shape());
                return Err(fail(format!(
                    "`{name}` is {found:?} {shape:?}, expected {dtype:?} of rank {rank}"
                )));
            }
            Ok(tensor)
        };
        let ids = tensor("input_ids", Dtype::I64, 2)?;
        let columns = ids.shape()[1];
        let ids = rows(ids.data(), columns);
        let mask = match file.tensor("attention_mask") {
            Ok(_) => rows(tensor("attention_mask", Dtype::I64, 2)?.data(), columns),
            Err(_) => vec![vec![1; columns]; ids.len()],
        };
        let logits = tensor("logits", Dtype::F32, 3)?;
        if logits.shape()[..2] != [ids.len(), columns] || mask.len() != ids.len() {
            return Err(fail(format!(
                "`logits` is {:?} for {} rows of {columns}",
                logits.shape(),
                ids.len()
            )));
        }
        let vocab = logits.shape()[2];
        if vocab == 0 {
            return Err(fail(format!("`logits` is {:?}, expected a vocabulary in the last", logits.shape())));
        }
        let numbers = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let numbers: Vec<f32> = numbers.collect();
        let logits = real_tokens(&numbers, &mask, vocab);
        Ok(Self { ids, mask, logits })
    }
}

fn rows(bytes: &[u8], columns: usize) -> Vec<Vec<i64>> {
    let number = |b: &[u8]| b.iter().rev().fold(0, |n: i64, byte| n << 8 | i64::from(*byte));
    let all: Vec<i64> = bytes.chunks_exact(8).map(number).collect();
    all.chunks_exact(columns.max(1)).map(<[i64]>::to_vec).collect()
}

/// The logits of the tokens that a mask keeps.
pub(super) fn real_tokens(logits: &[f32], mask: &[Vec<i64>], vocab: usize) -> Vec<f32> {
    // Where there is no vocabulary there are no logits either.
    let tokens = logits.chunks_exact(vocab.max(1)).zip(mask.iter().flatten());
    tokens.filter(|(_, m)| **m == 1).flat_map(|(row, _)| row.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn logits_of_no_width_are_refused() {
        let view = |dtype, shape: &[usize]| TensorView::new(dtype, shape.to_vec(), &[0; 16]);
        let ids = view(Dtype::I64, &[1, 2]).expect("a tensor");
        let logits = TensorView::new(Dtype::F32, vec![1, 2, 0], &[]).expect("a tensor");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        let bytes =
            safetensors::serialize([("input_ids", ids), ("logits", logits)], None).expect("it is laid out");
        std::fs::write(&path, bytes).expect("it is written");
        let refused = Reference::read(&path).expect_err("it is refused").to_string();
        let expected = "`logits` is [1, 2, 0], expected a vocabulary in the last";
        assert_eq!(refused, format!("{}: {expected}", path.display()));
        assert!(real_tokens(&[], &[vec![1, 1]], 0).is_empty());
    }
}
