//! The bf16 training graph in the f64 interpreter: what is bf16 in it is rounded, all else is exact.

use dijiang::onnx::import::import;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::eval::{Array, eval_rounded};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::tensor::Tensor;
use dijiang_passes::training::parameters::{ParameterLayout, Precision, Selection};
use dijiang_passes::training::specialize::{Size, TOKENS};
use dijiang_passes::training::step::{Batches, LABELS, LOSS, StepOptions, training_step};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const SIZE: Size = Size { batch: 2, sequence: 12 };

fn model(recipe: &str) -> Graph {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = dir.path().join("bundle");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama");
    let made = Command::new(env!("CARGO_BIN_EXE_dijiang"))
        .arg("convert")
        .arg(source)
        .arg("-o")
        .arg(&bundle)
        .args(["--recipe", recipe, "--no-verify"])
        .output()
        .expect("it starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut graph = import(&bundle.join("parallel.onnx")).expect("it is read");
    canonicalize(&mut graph).expect("it is clean");
    graph
}

/// Tokens, labels and parameters.
fn inputs(graph: &Graph, model: &Graph, layout: &ParameterLayout) -> BTreeMap<ValueId, Array> {
    let weights: BTreeMap<&str, &Tensor> = model.consts().map(|(_, name, tensor)| (name, tensor)).collect();
    let dims = [SIZE.batch as usize, SIZE.sequence as usize];
    let tokens: Vec<i64> = (0..dims[0] * dims[1]).map(|i| (i * 37 % 101) as i64).collect();
    let values = graph.inputs().iter().map(|id| {
        let array = match graph.value(*id).name.as_str() {
            TOKENS | LABELS => Array::from_i64(&dims, tokens.clone()),
            name => {
                let parameter = layout.parameters().find(|p| p.input() == name).expect("a parameter");
                let dims: Vec<usize> = parameter.dims.iter().map(|d| *d as usize).collect();
                Array::from_f64(&dims, weights[parameter.name.as_str()].to_f64())
            }
        };
        (*id, array.expect("it fits"))
    });
    values.collect()
}

/// The outputs by name, with what is bf16 rounded.
fn rounded(graph: &Graph, given: &BTreeMap<ValueId, Array>) -> BTreeMap<String, Vec<f64>> {
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|(_, id)| *id).collect();
    let values = eval_rounded(graph, given, &wanted).expect("it is evaluated");
    graph.outputs().iter().zip(values).map(|((name, _), value)| (name.clone(), value.to_f64())).collect()
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn the_bf16_graph_differs_from_the_f32_graph_by_its_roundings() {
    for recipe in ["adaptive", "gated", "paper", "released"] {
        let model = model(recipe);
        let layout = ParameterLayout::of(&model, &Selection::All).expect("there are weights");
        let [exact, mixed] = [Precision::F32, Precision::Bf16].map(|precision| {
            let how = StepOptions { size: SIZE, precision, batches: Batches::First, teacher: None };
            let graph = training_step(&model, &layout, &how).expect("it is made");
            rounded(&graph, &inputs(&graph, &model, &layout))
        });
        // A bf16 number is off by 2^-9 of itself at most, and the loss is a mean over tokens, in which roundings
        // cancel more than they add up.
        let (loss, off) = (exact[LOSS][0], (mixed[LOSS][0] - exact[LOSS][0]).abs());
        assert!(off > 0.0 && off < loss / 512.0, "{recipe}: loss {loss} is off by {off}");
        // A gradient passes some dozens of products, each with roundings that are independent: √n · 2^-9.
        for group in &layout.groups {
            let all = |of: &BTreeMap<String, Vec<f64>>| -> Vec<f64> {
                group.parameters.iter().flat_map(|p| of[&p.gradient()].clone()).collect()
            };
            let (name, exact, mixed) = (group.name, all(&exact), all(&mixed));
            let size = norm(exact.iter().copied());
            let off = norm(exact.iter().zip(&mixed).map(|(a, b)| a - b));
            assert!(off > 0.0 && off < 16.0 / 512.0 * size, "{recipe}: {name} {size} is off by {off}");
        }
    }
}
