//! How far the logits of two bundles are apart, on the prompts of verification.

use crate::serving::{self, OpenError};
use crate::verify::prompts;
use dijiang_format::manifest::Manifest;
use dijiang_format::serving::Engine;
use dijiang_runtime::{RuntimeError, ServingOptions};
use serde::Serialize;
use std::path::Path;

/// The logits after the prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NumericDifference {
    /// What ran both.
    pub runtime: &'static str,
    /// The norm of the difference over the norm of A's.
    pub relative_error: f64,
    pub largest: f64,
    /// The share of prompts with the same likeliest next token.
    pub agreement: f64,
}

/// Compares the two in ONNX Runtime, or in tract where there is none; or says why they cannot be.
pub(super) fn compare(a: (&Path, &Manifest), b: (&Path, &Manifest)) -> Result<NumericDifference, String> {
    let model = |manifest: &Manifest| (manifest.model.vocab, manifest.model.positions);
    if model(a.1) != model(b.1) {
        return Err("they know other tokens, or as many of them".to_owned());
    }
    if a.1.state.is_empty() || b.1.state.is_empty() {
        return Err("one of them has no state, and so no next token".to_owned());
    }
    let rows = prompts(a.1, 0);
    let both = |engine| Ok([logits(a.0, engine, &rows)?, logits(b.0, engine, &rows)?]);
    let (runtime, found) = match both(Engine::Ort) {
        Err(OpenError::Runtime(RuntimeError::LibraryMissing { .. })) => ("tract", both(Engine::Tract)),
        found => ("onnxruntime", found),
    };
    let [a, b] = found.map_err(|e: OpenError| e.to_string())?;
    Ok(difference(runtime, &a, &b))
}

fn logits(bundle: &Path, engine: Engine, rows: &[Vec<i64>]) -> Result<Vec<Vec<f32>>, OpenError> {
    let options = ServingOptions { engine, ..ServingOptions::default() };
    let mut serving = serving::open(bundle, &options)?;
    let mut all = Vec::new();
    for row in rows {
        serving.start(1)?;
        serving.prefill(std::slice::from_ref(row))?;
        all.push(serving.logits()?.to_f32().map_err(RuntimeError::from)?);
    }
    Ok(all)
}

fn difference(runtime: &'static str, a: &[Vec<f32>], b: &[Vec<f32>]) -> NumericDifference {
    let pairs = || a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut pairs().map(|(a, b)| a - b));
    let whole = norm(&mut pairs().map(|(a, _)| a));
    let likeliest =
        |row: &Vec<f32>| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| at);
    let same = a.iter().zip(b).filter(|(a, b)| likeliest(a) == likeliest(b)).count();
    NumericDifference {
        runtime,
        relative_error: apart / whole.max(f64::MIN_POSITIVE),
        largest: pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max),
        agreement: same as f64 / a.len().max(1) as f64,
    }
}
