//! The graphs that serve from bound memory, against the plain form: a prompt in segments, and token by token.

use super::measure::median_error;
use super::oracle::{self, Rounding};
use super::{Check, Verifier, VerifyError};
use crate::onnx::import::import;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_runtime::{Engine, RuntimeError, Serving, ServingOptions};

/// What the median token may be off by in half precision, in roundings of plain operators. With half as much eight
/// fixtures in four recipes and SmolLM2 held, the nearest at three quarters of the limit; the rest is for other models.
const ROUNDINGS: f64 = 4.0;

impl Verifier<'_> {
    /// `reference` holds the logits of all tokens of the prompts, row after row.
    pub(super) fn bound_graphs(&mut self, name: &str, reference: &[f32]) -> Result<(), VerifyError> {
        if !self.bundle.join(files::DECODE).exists() {
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
        let (prefill, decode) = (files::PREFILL, files::DECODE);
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
    /// model's are: the limit is [`ROUNDINGS`] times what rounding every result does to the plain serving graph, as the
    /// next power of two, since last digits differ from machine to machine. None where the interpreter does not know
    /// the graph, or half precision cannot hold it.
    fn bound_limit(&mut self) -> Result<Option<f64>, VerifyError> {
        if self.dtype == DType::F32 {
            return Ok(Some(self.served_limit()));
        }
        self.stage("rounding in f64");
        let row = self.prompts.short();
        let path = self.bundle.join(files::MODEL);
        let graph = import(&path)?;
        let logits = |rounding| oracle::evaluate(&graph, &path, &row, rounding);
        let (Ok(exact), Ok(rounded)) = (logits(Rounding::Nothing)?, logits(Rounding::Results)?) else {
            return Ok(None);
        };
        let error = median_error(&rounded, &exact, self.prompts.vocab());
        Ok(Some((ROUNDINGS * error).log2().ceil().exp2()).filter(|limit| limit.is_finite()))
    }

    /// In half precision by the median token: a few, whose residuals are the largest, may round ten times further than
    /// others.
    fn compare_bound(&mut self, name: String, limit: Option<f64>, found: &[f32], reference: &[f32]) {
        if self.dtype == DType::F32 {
            return self.compare(name, self.served_limit(), found, reference);
        }
        let measured = median_error(found, reference, self.prompts.vocab());
        self.found.checks.push(match limit {
            Some(limit) => Check::within(name, measured, limit),
            None => Check::report(name, measured),
        });
    }
}

/// Behind each row's last token.
fn logits(serving: &mut Serving) -> Result<Vec<f32>, VerifyError> {
    Ok(serving.logits()?.to_f32().map_err(RuntimeError::from)?)
}
