//! The graphs that serve from bound memory, against the plain form: a prompt in segments, and token by token.

use super::measure::relative_error;
use super::{Check, Verifier, VerifyError};
use crate::bundle::layout;
use dijiang_passes::ir::dtype::DType;
use dijiang_runtime::{Engine, RuntimeError, Serving, ServingOptions};

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
        let (prefill, decode) = (layout::PREFILL, layout::DECODE);
        self.compare_bound(format!("{name}: {prefill} in segments = parallel"), &found, &last);

        serving.start(1)?;
        let mut found = Vec::new();
        for token in &row {
            serving.decode(&[*token])?;
            found.extend(logits(&mut serving)?);
        }
        let whole = &reference[..row.len() * vocab];
        self.compare_bound(format!("{name}: {decode} token by token = parallel"), &found, whole);
        Ok(())
    }

    /// In half precision these graphs round the residuals too, and how far that carries depends on how large the
    /// model's are at each token: no limit that other tokens give holds for all.
    fn compare_bound(&mut self, name: String, found: &[f32], reference: &[f32]) {
        match self.dtype {
            DType::F32 => self.compare(name, self.served_limit(), found, reference),
            _ => self.found.checks.push(Check::report(name, relative_error(found, reference))),
        }
    }
}

/// Behind each row's last token.
fn logits(serving: &mut Serving) -> Result<Vec<f32>, VerifyError> {
    Ok(serving.logits()?.to_f32().map_err(RuntimeError::from)?)
}
