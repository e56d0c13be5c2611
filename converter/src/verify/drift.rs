//! How far the converted model is from the one it was made from: reported, and nothing is required of it.

use super::measure::{Drift, perplexity, relative_error};
use super::oracle::{self, Rounding};
use super::prompts::Prompts;
use super::table::{Check, Comparison, Measure};
use super::text;
use super::{Verifier, VerifyError};
use crate::report::progress::Progress;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::ir::graph::Graph;
use std::path::Path;

/// What the model as it came makes of the short text, and the converted one.
pub(crate) const TEXT_SOFTMAX: &str = "perplexity of a short text: softmax";
pub(crate) const TEXT_CONVERTED: &str = "perplexity of a short text: converted";

/// Said of the drift of a bundle that was only converted.
const UNTRAINED: &str = "expected before `dijiang calibrate`";

impl Verifier<'_> {
    /// Of a short text where there is a tokenizer, and otherwise of the prompts, of which `linear` is what the plain form
    /// gives.
    pub(super) fn drift_in(&mut self, runtime: usize, linear: &[f32]) -> Result<(), VerifyError> {
        if self.manifest.source.own_attention {
            self.skip("drift from softmax", "the attention is the source's own: there is no softmax model");
            return Ok(());
        }
        let mut softmax = self.plain(runtime, files::SOFTMAX)?;
        let left = !softmax.needs_right();
        let text = text::tokens(self.bundle, self.manifest).filter(|_| softmax.gives_logits());
        let Some(row) = text else {
            let numbers = softmax.padded(&self.prompts.rows(), left)?;
            self.drift(linear, &numbers, softmax.gives_logits());
            return Ok(());
        };
        let (plain, _) = self.plain_forms();
        let linear = self.model(runtime, plain)?.row(&row)?;
        let softmax = softmax.padded(std::slice::from_ref(&row), left)?;
        self.drift_of_text(&row, &linear, &softmax);
        Ok(())
    }

    fn drift_of_text(&mut self, row: &[i64], linear: &[f32], softmax: &[f32]) {
        if linear.len() != softmax.len() || !softmax.len().is_multiple_of(row.len()) {
            let (found, expected, tokens) = (linear.len(), softmax.len(), row.len());
            let reason =
                format!("its logits are {found} numbers, and {expected} of softmax, for {tokens} tokens");
            return self.skip(TEXT_CONVERTED, reason);
        }
        for (what, file, logits) in
            [(TEXT_SOFTMAX, files::SOFTMAX, softmax), (TEXT_CONVERTED, files::PARALLEL, linear)]
        {
            let found = Comparison::new(what, file, "a short text").by(Measure::Perplexity);
            self.push(found.reported(perplexity(row, logits)));
        }
        self.distance(linear, softmax, row.len());
    }

    /// Features are compared by their norm, and logits as the distributions they stand for.
    pub(super) fn drift(&mut self, linear: &[f32], softmax: &[f32], logits: bool) {
        let tokens: usize = self.prompts.rows().iter().map(Vec::len).sum();
        let from_softmax = |what: &str| {
            Comparison::new(format!("drift from softmax: {what}"), files::PARALLEL, files::SOFTMAX)
        };
        if !logits || !softmax.len().is_multiple_of(tokens) {
            let apart = relative_error(linear, softmax);
            let row = from_softmax("norm of the difference").reported(apart);
            self.push_drift(row);
            return;
        }
        self.distance(linear, softmax, tokens);
    }

    fn distance(&mut self, linear: &[f32], softmax: &[f32], tokens: usize) {
        let from_softmax = |what: &str| {
            Comparison::new(format!("drift from softmax: {what}"), files::PARALLEL, files::SOFTMAX)
        };
        let drift = Drift::measure(linear, softmax, softmax.len() / tokens);
        self.push_drift(from_softmax("KL, nats per token").by(Measure::Kl).reported(drift.kl));
        let agreement = from_softmax("share of tokens with the same argmax").by(Measure::Agreement);
        self.push_drift(agreement.reported(drift.agreement));
    }

    /// Features that were not trained yet stand for no exponential.
    fn push_drift(&mut self, row: Check) {
        let is_trained = self.manifest.trained.is_some();
        self.push(if is_trained { row } else { row.because(UNTRAINED) });
    }
}

/// What quantising the weights does to the model as it came, in the f64 interpreter: to the softmax graph that is
/// given in both ways.
pub(crate) fn quantization_drift(
    float: &Graph,
    quantized: &Graph,
    manifest: &Manifest,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<Check, VerifyError> {
    progress.stage("evaluating without and with quantised weights");
    let row = Prompts::new(manifest, seed).short();
    let logits = |graph| oracle::evaluate(graph, Path::new(files::SOFTMAX), &row, Rounding::Nothing);
    let comparison = Comparison::new(
        "drift of quantised weights: norm of the difference",
        "the softmax model with quantised weights, in the f64 interpreter",
        "the softmax model as it came, in the f64 interpreter",
    );
    Ok(match (logits(float)?, logits(quantized)?) {
        (Ok(float), Ok(quantized)) => comparison.reported(relative_error(&quantized, &float)),
        (Err(unknown), _) | (_, Err(unknown)) => comparison.skipped(unknown),
    })
}
