//! What the conversion of a trained model costs before any training: reported numbers, rounded and snapshotted, the
//! same in every runtime.

use crate::support::{Bundle, FIXTURES, Model, engines, recipe};
use dijiang::recipes::PRESETS;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::target::Target;
use dijiang_runtime::Runtime;
use std::fmt::Write as _;
use std::path::Path;

/// Bytes of a window: each is read from an empty state, and the byte after each of its bytes is predicted.
const WINDOW: usize = 256;
const WINDOWS: usize = 4;

/// A token is a byte.
const VOCABULARY: usize = 256;

struct Window {
    ids: Vec<i64>,
    next: Vec<usize>,
}

fn windows() -> Vec<Window> {
    let text = std::fs::read(Path::new(FIXTURES).join("shakespeare/valid.txt")).expect("the text");
    let window = |start: usize| Window {
        ids: text[start..start + WINDOW].iter().map(|b| i64::from(*b)).collect(),
        next: text[start + 1..=start + WINDOW].iter().map(|b| usize::from(*b)).collect(),
    };
    (0..WINDOWS).map(|n| window(n * WINDOW)).collect()
}

/// Log-probabilities of the next byte, a row for each byte of each window.
fn log_probabilities(engine: &dyn Runtime, file: &Path, windows: &[Window]) -> Vec<Vec<f64>> {
    let mut model = Model::load(engine, file);
    let rows = windows.iter().flat_map(|w| {
        let logits = model.whole(&w.ids);
        logits.chunks_exact(VOCABULARY).map(log_softmax).collect::<Vec<_>>()
    });
    rows.collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - max - total).collect()
}

fn perplexity(rows: &[Vec<f64>], windows: &[Window]) -> f64 {
    let next = windows.iter().flat_map(|w| &w.next);
    let loss: f64 = rows.iter().zip(next).map(|(row, next)| -row[*next]).sum();
    (loss / rows.len() as f64).exp()
}

/// KL(softmax ‖ linear), mean over the rows.
fn divergence(softmax: &[Vec<f64>], linear: &[Vec<f64>]) -> f64 {
    let one = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    softmax.iter().zip(linear).map(one).sum::<f64>() / softmax.len() as f64
}

/// Share of rows with the same likeliest byte.
fn agreement(softmax: &[Vec<f64>], linear: &[Vec<f64>]) -> f64 {
    let likeliest = |row: &[f64]| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    let same = softmax.iter().zip(linear).filter(|(p, q)| likeliest(p) == likeliest(q)).count();
    same as f64 / softmax.len() as f64
}

/// Three significant digits. The runtimes differ in the seventh, and no number here is closer than that to where
/// rounding changes.
fn rounded(x: f64) -> String {
    let digits = (2 - x.abs().log10().floor() as i32).max(0) as usize;
    format!("{x:.digits$}")
}

/// To a fiftieth: of 1024 rows a few are near ties, which may go either way.
fn rounded_share(share: f64) -> f64 {
    (share * 50.0).round() / 50.0
}

fn report(engine: &dyn Runtime) -> String {
    let windows = windows();
    let mut report = String::new();
    for (name, _) in PRESETS.iter().filter(|(name, _)| *name != "softmax") {
        let bundle = Bundle::of_fixture("shakespeare", &recipe(name), Target::Ort, DType::F32);
        let softmax = log_probabilities(engine, &bundle.file(files::SOFTMAX), &windows);
        if report.is_empty() {
            writeln!(report, "softmax: perplexity {}", rounded(perplexity(&softmax, &windows)))
                .expect("text");
        }
        let linear = log_probabilities(engine, &bundle.file(files::CHUNKED), &windows);
        writeln!(
            report,
            "{name}: perplexity {}, KL {}, agreement {:.2}",
            rounded(perplexity(&linear, &windows)),
            rounded(divergence(&softmax, &linear)),
            rounded_share(agreement(&softmax, &linear))
        )
        .expect("text");
    }
    report
}

#[test]
fn recipes_before_training_on_shakespeare() {
    for engine in engines() {
        insta::allow_duplicates! {
            insta::assert_snapshot!(report(engine.as_ref()), @"
            softmax: perplexity 3.28
            adaptive: perplexity 3.34, KL 0.0155, agreement 0.96
            windows: perplexity 3.30, KL 0.00290, agreement 0.98
            gated: perplexity 28.7, KL 2.33, agreement 0.28
            paper: perplexity 49.0, KL 2.88, agreement 0.26
            released: perplexity 142, KL 3.89, agreement 0.10
            performer: perplexity 34.6, KL 2.49, agreement 0.22
            pff: perplexity 32.7, KL 2.47, agreement 0.24
            wpff: perplexity 32.7, KL 2.47, agreement 0.24
            decayed: perplexity 35.6, KL 2.55, agreement 0.26
            elu: perplexity 47.3, KL 2.84, agreement 0.26
            cosformer: perplexity 48.7, KL 2.86, agreement 0.28
            retnet: perplexity 167, KL 4.04, agreement 0.10
            linformer: perplexity 252, KL 4.48, agreement 0.10
            ");
        }
    }
}

#[test]
fn rounding_keeps_three_digits() {
    assert_eq!([123.45, 12.345, 0.012_345].map(rounded), ["123", "12.3", "0.0123"]);
}
