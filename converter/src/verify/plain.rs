//! One graph in one runtime, run on complete prompts: encoders, and graphs whose caches are nobody's names.

use super::VerifyError;
use super::features::{self, Pictures};
use super::prompts::{Padded, padded};
use super::reference::real_tokens;
use dijiang_format::dtype::DType;
use dijiang_format::words::counted;
use dijiang_runtime::{DimSpec, HostTensor, Io, LoadOptions, Runtime, Session};
use std::path::Path;

/// A loaded graph that remembers nothing between runs. Results come back as f32, token after token,
/// padding left out.
pub(super) struct Plain {
    session: Box<dyn Session>,
    file: String,
    /// Key/value heads and the width of one, for caches that leave them open.
    head: [usize; 2],
    /// Position of the result among the outputs.
    output: usize,
    pictures: Pictures,
}

impl Plain {
    pub(super) fn load(
        runtime: &dyn Runtime,
        path: &Path,
        options: &LoadOptions,
        head: [usize; 2],
    ) -> Result<Self, VerifyError> {
        let session = runtime.load(path, options)?;
        let file = path.display().to_string();
        let output = result_of(session.outputs()).ok_or_else(|| VerifyError::Model {
            file: file.clone(),
            reason: "it has no float output [batch, tokens, width] or [batch, width]".to_owned(),
        })?;
        Ok(Self { session, file, head, output, pictures: Pictures::default() })
    }

    /// Fed pictures of these sizes, where the graph takes any.
    pub(super) fn with_pictures(self, pictures: Pictures) -> Self {
        Self { pictures, ..self }
    }

    fn takes(&self, input: &str) -> bool {
        self.session.inputs().iter().any(|io| io.name == input)
    }

    /// Whether padding must stand at the right: positions that are not given are counted from the left.
    pub(super) fn needs_right(&self) -> bool {
        !self.takes("position_ids")
    }

    /// Whether rows of unequal length make one batch.
    pub(super) fn takes_padding(&self) -> bool {
        self.takes("attention_mask")
    }

    /// Whether the result is the scores of the next token or of words, as opposed to features.
    pub(super) fn gives_logits(&self) -> bool {
        self.session.outputs()[self.output].name == "logits"
    }

    /// What a row of so many tokens is to the graph.
    pub(super) fn words(&self, tokens: usize) -> String {
        match self.takes("input_ids") {
            true => format!("1 sequence of {}", counted(tokens, "token")),
            false => "1 example".to_owned(),
        }
    }

    /// One row alone.
    pub(super) fn row(&mut self, row: &[i64]) -> Result<Vec<f32>, VerifyError> {
        self.masked(&[row.to_vec()], &[vec![1; row.len()]])
    }

    /// Every row alone.
    pub(super) fn alone(&mut self, rows: &[Vec<i64>]) -> Result<Vec<f32>, VerifyError> {
        Ok(rows.iter().map(|row| self.row(row)).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Rows of unequal length as one batch, padded at one side.
    pub(super) fn padded(&mut self, rows: &[Vec<i64>], left: bool) -> Result<Vec<f32>, VerifyError> {
        let Padded { ids, mask } = padded(rows, left);
        self.masked(&ids, &mask)
    }

    /// A batch with its padding marked by zeros of the mask.
    pub(super) fn masked(&mut self, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Result<Vec<f32>, VerifyError> {
        let inputs = self.session.inputs();
        let tensors = inputs.iter().map(|io| self.fill(io, ids, mask)).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = inputs.iter().map(|io| io.name.clone()).collect();
        let given: Vec<(&str, &HostTensor)> = names.iter().map(String::as_str).zip(&tensors).collect();
        let result = self.session.run(&given)?.swap_remove(self.output);
        let numbers = result.to_f32().map_err(|e| self.fail(e.to_string()))?;
        let fed: usize = mask.iter().map(Vec::len).sum();
        Ok(match result.shape() {
            [rows, tokens, width] if rows * tokens == fed => real_tokens(&numbers, mask, (*width).max(1)),
            // As where an answer begins and ends: one number for each token.
            [rows, tokens] if rows * tokens == fed && self.is_of_tokens() => real_tokens(&numbers, mask, 1),
            _ => numbers,
        })
    }

    /// Whether the last axis of the result is as long as the tokens, and not one of classes or features.
    fn is_of_tokens(&self) -> bool {
        let shape = &self.session.outputs()[self.output].shape;
        matches!(shape.last(), Some(DimSpec::Dynamic(_)))
    }

    fn fill(&self, io: &Io, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Result<HostTensor, VerifyError> {
        let zeros = || ids.iter().map(|row| vec![0; row.len()]).collect::<Vec<_>>();
        match io.name.as_str() {
            "input_ids" => self.integers(io, ids),
            "attention_mask" => self.integers(io, mask),
            "position_ids" => self.integers(io, &positions(mask)),
            "token_type_ids" => self.integers(io, &zeros()),
            _ if is_float(io.dtype) && !self.takes("input_ids") => self.features(io, ids),
            _ if is_float(io.dtype) && io.shape.len() > 2 => self.no_past(io, ids.len()),
            other => Err(VerifyError::UnknownInput { input: other.to_owned() }),
        }
    }

    fn integers(&self, io: &Io, rows: &[Vec<i64>]) -> Result<HostTensor, VerifyError> {
        let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
        let flat = rows.concat();
        let made = match io.dtype {
            DType::I32 => {
                let narrow = |x: &i64| {
                    let reason = || format!("`{}` takes 32 bits, and {x} is more", io.name);
                    i32::try_from(*x).map_err(|_| self.fail(reason()))
                };
                HostTensor::from_i32(&shape, &flat.iter().map(narrow).collect::<Result<Vec<_>, _>>()?)
            }
            _ => HostTensor::from_i64(&shape, &flat),
        };
        made.map_err(|e| self.fail(e.to_string()))
    }

    fn features(&self, io: &Io, rows: &[Vec<i64>]) -> Result<HostTensor, VerifyError> {
        let dims: Vec<Option<usize>> = io
            .shape
            .iter()
            .map(|dim| match dim {
                DimSpec::Fixed(size) => Some(*size),
                DimSpec::Dynamic(_) => None,
            })
            .collect();
        let dims = self.pictures.sized(&io.name, dims);
        let sizes = features::sizes(&io.name, &dims, rows).map_err(|e| self.fail(e))?;
        let numbers: Vec<f32> =
            features::numbers(&io.name, &sizes, rows).into_iter().map(|x| x as f32).collect();
        let made = HostTensor::from_f32(&sizes, &numbers).and_then(|t| t.to_float(io.dtype));
        made.map_err(|e| self.fail(e.to_string()))
    }

    /// A cache of no tokens.
    fn no_past(&self, io: &Io, batch: usize) -> Result<HostTensor, VerifyError> {
        let size = |(axis, dim): (usize, &DimSpec)| match (dim, axis) {
            (_, 0) => batch,
            (DimSpec::Fixed(size), _) => *size,
            (DimSpec::Dynamic(_), 1) => self.head[0],
            (DimSpec::Dynamic(_), 3) => self.head[1],
            (DimSpec::Dynamic(_), _) => 0,
        };
        let shape: Vec<usize> = io.shape.iter().enumerate().map(size).collect();
        HostTensor::zeros(io.dtype, &shape).map_err(|e| self.fail(e.to_string()))
    }

    fn fail(&self, reason: String) -> VerifyError {
        VerifyError::Model { file: self.file.clone(), reason }
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The output that stands for the model: per token where there is one, else per row.
fn result_of(outputs: &[Io]) -> Option<usize> {
    let of_rank = |rank: usize| outputs.iter().position(|io| is_float(io.dtype) && io.shape.len() == rank);
    of_rank(3).or_else(|| of_rank(2))
}

/// Tokens that are no padding are counted from 0.
fn positions(mask: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let count = |row: &Vec<i64>| {
        let seen = row.iter().scan(0, |seen, m| {
            *seen += m;
            Some((*seen - 1).max(0))
        });
        seen.collect()
    };
    mask.iter().map(count).collect()
}
