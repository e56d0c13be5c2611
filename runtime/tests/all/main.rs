//! One binary for all tests that run models, so that the runtimes are linked once.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod decoding;
mod generation;
mod models;
mod runtimes;
mod serving;

use dijiang_runtime::{OrtRuntime, Runtime, TractRuntime};

/// Every runtime that can run here. ONNX Runtime may be missing, unless `DIJIANG_REQUIRE_ORT` is 1.
fn runtimes() -> Vec<Box<dyn Runtime>> {
    let mut all: Vec<Box<dyn Runtime>> = vec![Box::new(TractRuntime)];
    match OrtRuntime::new() {
        Ok(runtime) => all.push(Box::new(runtime)),
        Err(error) if std::env::var("DIJIANG_REQUIRE_ORT").is_ok_and(|value| value == "1") => {
            panic!("{error}")
        }
        Err(error) => eprintln!("skipped on ONNX Runtime: {error}"),
    }
    all
}

/// ONNX Runtime, where it is there.
fn ort() -> Option<Box<dyn Runtime>> {
    runtimes().into_iter().find(|runtime| runtime.name() == "onnxruntime")
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "element {i}: {a} against {b}");
    }
}
