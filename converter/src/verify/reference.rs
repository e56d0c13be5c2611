//! The source's own reference: token ids and the logits that the model's authors' code gives for them.
//!
//! A safetensors file with `input_ids` i64 `[batch, sequence]`, optionally `attention_mask` i64 of the same
//! shape, and `logits` f32 `[batch, sequence, vocab]`.

use super::measure::relative_error;
use super::oracle::{self, Rounding};
use super::table::Comparison;
use super::{EXACT, HALF, Verifier, VerifyError, word};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::regular;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// The file as a checkpoint directory may hold it.
pub const FILE: &str = "reference.safetensors";

/// What was fed, and what came out.
#[derive(Debug)]
struct Reference {
    ids: Vec<Vec<i64>>,
    mask: Vec<Vec<i64>>,
    /// Of the tokens that are no padding, row after row.
    logits: Vec<f32>,
}

impl Reference {
    fn read(path: &Path) -> Result<Self, VerifyError> {
        let fail = |reason: String| VerifyError::Model { file: path.display().to_string(), reason };
        let bytes = regular::read(path).map_err(|e| fail(e.to_string()))?;
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

    /// Each row's tokens that are no padding.
    fn tokens(&self) -> Vec<Vec<i64>> {
        let real = |(ids, mask): (&Vec<i64>, &Vec<i64>)| {
            ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect()
        };
        self.ids.iter().zip(&self.mask).map(real).collect()
    }
}

impl Verifier<'_> {
    /// The graph of the source against what the source's own code computes: in every runtime, or where there is none in
    /// the f64 interpreter.
    pub(super) fn reference(&mut self, path: &Path) -> Result<(), VerifyError> {
        self.stage("comparing with the source's reference");
        let reference = Reference::read(path)?;
        for i in 0..self.runtimes.len() {
            let name = self.runtimes[i].name();
            let logits = self.plain(i, self.of_source())?.masked(&reference.ids, &reference.mask)?;
            self.against_reference(name, Ok(logits), &reference.logits);
        }
        if self.runtimes.is_empty() {
            let graph = self.bundle.join(self.of_source());
            let rows = reference.tokens();
            let alone = |row: &Vec<i64>| oracle::logits(&graph, row, Rounding::Nothing);
            let logits: Result<Vec<_>, _> =
                rows.iter().map(alone).collect::<Result<Vec<_>, _>>()?.into_iter().collect();
            self.against_reference("f64 interpreter", logits.map(|rows| rows.concat()), &reference.logits);
        }
        Ok(())
    }

    /// The graph that computes what the source does: softmax, but where the attention of the source is linear.
    fn of_source(&self) -> &'static str {
        if self.manifest.source.own_attention { self.plain_forms().0 } else { files::SOFTMAX }
    }

    /// `found` is what the graph of the source gives, or why it gives nothing.
    fn against_reference(&mut self, name: &str, found: Result<Vec<f32>, String>, reference: &[f32]) {
        // Weights that were rounded when they were converted are not the reference's.
        let rounded = self.dtype != DType::F32 && self.manifest.source.dtype != self.manifest.dtype;
        let limit = if rounded { HALF } else { EXACT };
        let quantized = self.manifest.weights.is_some();
        let graph = self.of_source();
        let of = word(graph);
        let what = match quantized {
            true => format!("{name}: drift of {of} from the reference, with quantised weights"),
            false => format!("{name}: {of} = reference"),
        };
        let comparison = Comparison::new(what, format!("{graph} in {name}"), "the source's own logits");
        self.push(match found {
            Err(reason) => comparison.skipped(reason),
            Ok(found) if quantized => comparison.reported(relative_error(&found, reference)),
            Ok(found) => comparison.logits(limit, &found, reference),
        });
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
