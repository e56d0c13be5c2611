//! How long the parts of a conversion take on a small model, so that a change that slows one down is seen:
//! `cargo bench -p dijiang`. Figures are kept in docs/benchmarks.md.

use dijiang::convert::compile::{CompileOptions, compile};
use dijiang::onnx::export::{ExportOptions, export};
use dijiang::onnx::import::import_bytes;
use dijiang::{checkpoint, recipes};
use dijiang_format::dtype::DType;
use dijiang_format::target::{PORTABLE_OPSET, Target};
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::patterns::find_sites;
use dijiang_passes::attention::rewrite::{Options, rewrite};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::tensor::Tensor;
use divan::Bencher;
use std::path::Path;

fn main() {
    divan::main();
}

/// Two layers, grouped heads, rotary positions.
fn source() -> Graph {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama");
    checkpoint::open(&fixture).and_then(|c| c.build(Some(DType::F32))).expect("the fixture").graph
}

fn clean() -> Graph {
    let mut graph = source();
    canonicalize(&mut graph).expect("it settles");
    graph
}

fn file() -> Vec<u8> {
    export(&source(), &ExportOptions { opset: PORTABLE_OPSET, weights: None }).expect("it is written")
}

#[divan::bench]
fn import_onnx(bencher: Bencher<'_, '_>) {
    let bytes = bytes::Bytes::from(file());
    bencher.bench(|| import_bytes(bytes.clone(), Path::new("model.onnx")).expect("it reads"));
}

#[divan::bench]
fn export_onnx(bencher: Bencher<'_, '_>) {
    let graph = source();
    let options = ExportOptions { opset: PORTABLE_OPSET, weights: None };
    bencher.bench(|| export(&graph, &options).expect("it is written"));
}

#[divan::bench]
fn canonicalise(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(source).bench_values(|mut graph| canonicalize(&mut graph).expect("it settles"));
}

#[divan::bench]
fn sites(bencher: Bencher<'_, '_>) {
    let graph = clean();
    bencher.bench(|| find_sites(&graph));
}

#[divan::bench(args = ["adaptive", "gated"])]
fn lower(bencher: Bencher<'_, '_>, recipe: &str) {
    let recipe = recipes::load(recipe).expect("a preset");
    let form = Form::Operator("com.microsoft");
    let options = Options { recipe: &recipe, form, seed: 0, layers: None, added: None };
    bencher.with_inputs(clean).bench_values(|mut graph| rewrite(&mut graph, &options).expect("it lowers"));
}

#[divan::bench(args = ["adaptive", "gated", "softmax"])]
fn whole(bencher: Bencher<'_, '_>, recipe: &str) {
    let recipe = recipes::load(recipe).expect("a preset");
    let options = CompileOptions { recipe: &recipe, target: Target::Ort, seed: 0, layers: None };
    bencher.with_inputs(source).bench_values(|graph| compile(graph, &options).expect("it compiles"));
}

/// One matrix product of the f64 interpreter, 128 × 512 × 512.
#[divan::bench]
fn interpret_matmul(bencher: Bencher<'_, '_>) {
    let mut graph = Graph::new("matmul");
    let change = {
        use dijiang_passes::ir::{patch::Patch, shape::Dim};
        let mut p = Patch::new(&graph, "bench");
        let a = p.input("a", DType::F32, vec![Dim::Known(128), Dim::Known(512)]);
        let b = p.input("b", DType::F32, vec![Dim::Known(512), Dim::Known(512)]);
        let y = p.matmul(a, b);
        p.output("y", y);
        p.finish()
    };
    graph.apply(change).expect("it is well-formed");
    let numbers = |dims: &[usize]| {
        let count = dims.iter().product::<usize>();
        Array::from_f64(dims, (0..count).map(|i| (i % 7) as f64).collect()).expect("they fill it")
    };
    let [a, b] = ["a", "b"].map(|name| graph.input(name).expect("an input"));
    let inputs = [(a, numbers(&[128, 512])), (b, numbers(&[512, 512]))].into_iter().collect();
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|(_, value)| *value).collect();
    bencher.bench(|| eval(&graph, &inputs, &wanted).expect("it runs"));
}

/// Four million numbers on their way into a weight file.
#[divan::bench]
fn cast_f32_to_f16(bencher: Bencher<'_, '_>) {
    let numbers: Vec<f32> = (0..1 << 22).map(|i| i as f32 * 1e-6).collect();
    let cast = Tensor::from_f32(&[1 << 22], &numbers).cast(DType::F16);
    bencher.bench(|| {
        let mut bytes = 0;
        let done = cast.for_each_block::<()>(&mut |block| {
            bytes += divan::black_box(block).len();
            Ok(())
        });
        (done, bytes)
    });
}
