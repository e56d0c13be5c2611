//! The graphs that serve from bound memory, against the plain form: a prompt in segments, and token by token.

use super::measure::{median_error, relative_error};
use super::oracle::{self, Rounding};
use super::table::{Comparison, Measure};
use super::{Verifier, VerifyError, word};
use crate::onnx::import::import;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_runtime::{Engine, RuntimeError, Serving, ServingOptions};

/// What the median token may be off by in half precision, in roundings of plain operators. With half as much eight
/// fixtures in four recipes and SmolLM2 held, the nearest at three quarters of the limit; the rest is for other models.
const ROUNDINGS: f64 = 4.0;

impl Verifier<'_> {
    /// `reference` holds the logits that the form `plain` gives for all tokens of the prompts, row after row.
    pub(super) fn bound_graphs(
        &mut self,
        name: &str,
        plain: &str,
        reference: &[f32],
    ) -> Result<(), VerifyError> {
        let (prefill, decode) = (files::PREFILL, files::DECODE);
        match [prefill, decode].map(|file| self.is_there(file)) {
            [true, true] => {}
            [false, false] if !self.has_bound_graphs() => return Ok(()),
            [is_there, _] => {
                let missing = if is_there { decode } else { prefill };
                self.skip_bound_graphs(name, &format!("{missing} is missing"));
                return Ok(());
            }
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
        let fed = |file: &str, how: &str| {
            Comparison::new(
                format!("{name}: {file} {how} = {}", word(plain)),
                format!("{file} in {name}, {how}"),
                format!("{plain} in {name}"),
            )
        };
        self.compare_bound(fed(prefill, "in segments"), limit, &found, &last);

        serving.start(1)?;
        let mut found = Vec::new();
        for token in &row {
            serving.decode(&[*token])?;
            found.extend(logits(&mut serving)?);
        }
        let whole = &reference[..row.len() * vocab];
        self.compare_bound(fed(decode, "token by token"), limit, &found, whole);
        Ok(())
    }

    /// Whether the manifest lists them, or they lie there all the same.
    fn has_bound_graphs(&self) -> bool {
        let is_bound = |file: &str| self.is_there(file) || self.manifest.files.iter().any(|f| f == file);
        is_bound(files::PREFILL) || is_bound(files::DECODE)
    }

    pub(super) fn skip_bound_graphs(&mut self, name: &str, reason: &str) {
        if self.has_bound_graphs() {
            self.skip(format!("{} and {} in {name}", files::PREFILL, files::DECODE), reason);
        }
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
    fn compare_bound(
        &mut self,
        comparison: Comparison,
        limit: Option<f64>,
        found: &[f32],
        reference: &[f32],
    ) {
        let (comparison, measured) = match self.dtype {
            DType::F32 => (comparison, relative_error(found, reference)),
            _ => {
                let measured = median_error(found, reference, self.prompts.vocab());
                (comparison.by(Measure::MedianRelativeError), measured)
            }
        };
        self.push(match limit {
            Some(limit) => comparison.within(measured, limit),
            None => comparison.reported(measured).because("the f64 interpreter does not know its rounding"),
        });
    }
}

/// Behind each row's last token.
fn logits(serving: &mut Serving) -> Result<Vec<f32>, VerifyError> {
    Ok(serving.logits()?.to_f32().map_err(RuntimeError::from)?)
}
