//! The graphs that serve from bound memory, against the plain form: a prompt in segments, and token by token.

use super::measure::relative_error;
use super::oracle::{self, Rounding};
use super::{Check, Verifier, VerifyError};
use crate::bundle::layout;
use crate::onnx::import::import;
use dijiang_passes::ir::dtype::DType;
use dijiang_runtime::{Engine, RuntimeError, Serving, ServingOptions};

/// What these graphs may be off by in half precision, in roundings of a few tokens in plain operators. Fixtures are off
/// by 1.4 at most; the rest is for other tokens and other orders of summation.
const ROUNDINGS: f64 = 2.0;

impl Verifier<'_> {
    /// `reference` holds the logits of all tokens of the prompts, row after row.
    pub(super) fn bound_graphs(&mut self, name: &str, reference: &[f32]) -> Result<(), VerifyError> {
        if !self.bundle.join(layout::DECODE).exists() {
            return Ok(());
        }
        self.stage(&format!("serving from bound memory in {name}"));
        let rows = self.prompts.rows();
        let row = self.prompts.longest();
        let vocab = self.prompts.vocab();
        // The longest row takes two segments, and the states go to and fro.
        let segment = row.len().div_ceil(2);
        let options =
            ServingOptions { engine: Engine::OrtBound, segment: Some(segment), ..ServingOptions::default() };
        let mut serving = Serving::open(self.bundle, &options)?;

        serving.start(rows.len())?;
        serving.prefill(&rows)?;
        let found = logits(&mut serving)?;
        let ends = rows.iter().scan(0, |tokens, row| {
            *tokens += row.len();
            Some(*tokens)
        });
        let last: Vec<f32> =
            ends.flat_map(|end| &reference[(end - 1) * vocab..end * vocab]).copied().collect();
        let limit = self.bound_limit()?;
        let (prefill, decode) = (layout::PREFILL, layout::DECODE);
        self.compare_bound(format!("{name}: {prefill} in segments = parallel"), limit, &found, &last);

        serving.start(1)?;
        let mut found = Vec::new();
        for token in &row {
            serving.decode(&[*token])?;
            found.extend(logits(&mut serving)?);
        }
        let whole = &reference[..row.len() * vocab];
        self.compare_bound(format!("{name}: {decode} token by token = parallel"), limit, &found, whole);
        Ok(())
    }

    /// In half precision these graphs round the residuals too, and how far that carries depends on how large the
    /// model's are: the limit is [`ROUNDINGS`] times what rounding every result does to the plain serving graph. It is
    /// the next power of two, as the last digits differ from machine to machine. None where the interpreter does not
    /// know the graph, or half precision cannot hold it.
    fn bound_limit(&mut self) -> Result<Option<f64>, VerifyError> {
        if self.dtype == DType::F32 {
            return Ok(Some(self.served_limit()));
        }
        self.stage("rounding in f64");
        let row = self.prompts.short();
        let path = self.bundle.join(layout::MODEL);
        let graph = import(&path)?;
        let logits = |rounding| oracle::evaluate(&graph, &path, &row, rounding);
        let (Ok(exact), Ok(rounded)) = (logits(Rounding::Nothing)?, logits(Rounding::Results)?) else {
            return Ok(None);
        };
        let limit = (ROUNDINGS * relative_error(&rounded, &exact)).log2().ceil().exp2();
        Ok(Some(limit).filter(|limit| limit.is_finite()))
    }

    fn compare_bound(&mut self, name: String, limit: Option<f64>, found: &[f32], reference: &[f32]) {
        match limit {
            Some(limit) => self.compare(name, limit, found, reference),
            None => self.found.checks.push(Check::report(name, relative_error(found, reference))),
        }
    }
}

/// Behind each row's last token.
fn logits(serving: &mut Serving) -> Result<Vec<f32>, VerifyError> {
    Ok(serving.logits()?.to_f32().map_err(RuntimeError::from)?)
}
