//! Fixtures as bundles, and the logits of what serves them.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use dijiang_runtime::Serving;
use std::fmt::Display;
use std::path::Path;
use std::process::Command;

/// Logits of f32 graphs in two orders of summation, relative to the largest.
pub(crate) const SAME: f32 = 2e-5;

pub(crate) fn convert_to(bundle: &Path, fixture: &str, recipe: &str, more: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    command.arg("convert").arg(source).arg("-o").arg(bundle);
    let output = command
        .args(["--recipe", recipe, "--dtype", "f32", "--no-verify"])
        .args(more)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `None` where there is no ONNX Runtime and none is asked for.
pub(crate) fn or_skip<E: Display>(opened: Result<Serving, E>) -> Option<Serving> {
    match opened {
        Ok(serving) => Some(serving),
        Err(error) if std::env::var("DIJIANG_REQUIRE_ORT").is_ok_and(|value| value == "1") => {
            panic!("{error}")
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

pub(crate) fn logits(serving: &Serving) -> Vec<f32> {
    serving.logits().expect("logits").to_f32().expect("floats")
}

#[track_caller]
pub(crate) fn assert_within(limit: f32, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    assert!(largest > 0.0 && found.len() == expected.len());
    let error = found.iter().zip(expected).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
    assert!(error <= limit * largest, "{error:e} of {largest:e}");
}
