//! What the device's memory gives at most: a graph that does nothing but read and write.

use super::{BenchError, median};
use crate::onnx::export::{ExportOptions, export};
use dijiang_format::dtype::DType;
use dijiang_format::target::PORTABLE_OPSET;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::Patch;
use dijiang_passes::ir::shape::Dim;
use dijiang_runtime::{Device, LoadOptions, OrtRuntime, Program};
use std::path::PathBuf;
use std::time::Instant;

/// Larger than any cache of the device.
const BYTES: u64 = 256 << 20;
const RUNS: usize = 9;

/// Bytes per second, read and written, of negating numbers: a copy whose one operation costs nothing, and which no
/// runtime leaves out.
pub(super) fn bandwidth(runtime: &OrtRuntime, device: Device) -> Result<f64, BenchError> {
    let fail = |reason: String| BenchError::Model { path: PathBuf::from("copy.onnx"), reason };
    let io = |source| BenchError::Io { path: PathBuf::from("copy.onnx"), source };
    let mut graph = Graph::new("copy");
    let change = {
        let mut p = Patch::new(&graph, "copy");
        let x = p.input("x", DType::F32, vec![Dim::Known(BYTES / 4)]);
        let y = p.neg(x);
        p.output("y", y);
        p.finish()
    };
    graph.apply(change).map_err(|e| fail(e.to_string()))?;
    let directory = tempfile::tempdir().map_err(io)?;
    let path = directory.path().join("copy.onnx");
    let bytes = export(&graph, &ExportOptions { opset: PORTABLE_OPSET, weights: None })?;
    std::fs::write(&path, bytes).map_err(io)?;
    let mut program = Program::load(runtime, &path, &LoadOptions { device, ..LoadOptions::default() })?;
    let (x, y) = (program.allocate_like("x")?, program.allocate_like("y")?);
    program.bind_input("x", &x)?;
    program.bind_output("y", &y)?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        program.run()?;
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * BYTES as f64 / median(times))
}
