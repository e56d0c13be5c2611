//! What a device computes in a second: the product of two matrices, of which training is nearly all made.

use super::AdaptError;
use crate::onnx::export::{ExportOptions, export};
use dijiang_format::dtype::DType;
use dijiang_format::target::PORTABLE_OPSET;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::Patch;
use dijiang_passes::ir::shape::Dim;
use dijiang_runtime::temporary::Temporary;
use dijiang_runtime::{LoadOptions, OrtRuntime, Program};
use std::time::Instant;

/// Rows and columns of each.
const SIDE: u64 = 1536;
/// The first makes the device ready, and the fastest counts.
const RUNS: usize = 5;

/// Sums of products in a second.
pub(super) fn products_a_second(load: &LoadOptions) -> Result<f64, AdaptError> {
    let io = |source| AdaptError::Io { path: std::env::temp_dir(), source };
    let mut graph = Graph::new("product");
    let change = {
        let mut p = Patch::new(&graph, "product");
        let side = || vec![Dim::Known(SIDE), Dim::Known(SIDE)];
        let (a, b) = (p.input("a", DType::F32, side()), p.input("b", DType::F32, side()));
        let y = p.matmul(a, b);
        p.output("y", y);
        p.finish()
    };
    graph.apply(change)?;
    let directory = Temporary::scratch("dijiang-adapt").map_err(io)?;
    let path = directory.path().join("product.onnx");
    let bytes = export(&graph, &ExportOptions { opset: PORTABLE_OPSET, weights: None })?;
    std::fs::write(&path, bytes).map_err(io)?;
    let mut program = Program::load(&OrtRuntime::new()?, &path, load)?;
    for name in ["a", "b"] {
        let matrix = program.allocate_like(name)?;
        program.bind_input(name, &matrix)?;
    }
    let y = program.allocate_like("y")?;
    program.bind_output("y", &y)?;
    let mut fastest = f64::INFINITY;
    for _ in 0..RUNS {
        let started = Instant::now();
        program.run()?;
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    Ok((SIDE * SIDE * SIDE) as f64 / fastest)
}
