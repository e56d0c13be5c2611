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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes;
    use dijiang_format::dtype::DType;
    use dijiang_format::manifest::{Model, Source, SourceKind, State};
    use dijiang_format::target::Target;

    fn manifest(vocab: u64, states: usize) -> Manifest {
        let model = Model { family: "llama".to_owned(), vocab, positions: None, eos: Vec::new() };
        let source = Source {
            kind: SourceKind::Checkpoint,
            dtype: DType::F32,
            files: Vec::new(),
            own_attention: false,
            hub: None,
        };
        let recipe = recipes::load(recipes::DEFAULT).expect("a recipe");
        let mut manifest = Manifest::new(source, model, recipe, Target::Ort, DType::F32);
        let state =
            |layer| State { name: format!("past_key_values.{layer}"), shape: Vec::new(), dtype: DType::F32 };
        manifest.state = (0..states).map(state).collect();
        manifest
    }

    /// Without opening either.
    #[test]
    fn what_has_no_common_numbers_is_said() {
        let nowhere = Path::new("no-such-bundle");
        let said = |a: &Manifest, b: &Manifest| compare((nowhere, a), (nowhere, b)).expect_err("a reason");
        let (decoder, encoder) = (manifest(8, 1), manifest(8, 0));
        for (a, b) in [(&decoder, &encoder), (&encoder, &decoder), (&encoder, &encoder)] {
            assert_eq!(said(a, b), "one of them has no state, and so no next token");
        }
        assert_eq!(said(&decoder, &manifest(9, 1)), "they know other tokens, or as many of them");
    }

    #[test]
    fn the_difference_is_that_of_all_logits() {
        let [a, b] = [[3.0, 4.0], [3.0, 1.0]].map(|row| vec![row.to_vec(), vec![0.0, 1.0]]);
        let found = difference("x", &a, &b);
        assert!((found.relative_error - 3.0 / 26f64.sqrt()).abs() < 1e-12, "{found:?}");
        assert!((found.largest - 3.0).abs() < 1e-12 && (found.agreement - 0.5).abs() < 1e-12, "{found:?}");
    }
}
