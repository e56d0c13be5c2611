//! A decoder of two layers in the textual form, and as an ONNX file.

use dijiang::bundle::weights::WeightFile;
use dijiang::onnx::export::{ExportOptions, ExternalWeights, export};
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use dijiang_passes::ir::text::parse;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Two heads of 8, caches, a causal mask with key padding. The mask reads the length of the past from the
/// cache of the second layer, which comes first so that the clean-ups leave it at that.
const BEGIN: &str = r#"graph "decoder" {
  input %input_ids: i64[batch, sequence]
  input %attention_mask: i64[batch, past + sequence]
  weight %embed: f32[48, 16] = random(1)
  weight %head: f32[16, 48] = random(2)
  const %zero: i64[] = [0]
  const %one: i64[] = [1]
  const %end: i64[1] = [9223372036854775807]
  const %split: i64[4] = [0, 0, 2, 8]
  const %width: i64[1] = [16]
  const %scale: f32[] = [0.35355338]
  const %clear: f32[] = [0.0]
  const %shut: f32[] = [-1e30]
  input %past_key_values.1.key: f32[batch, 2, past, 8]
  input %past_key_values.1.value: f32[batch, 2, past, 8]
  input %past_key_values.0.key: f32[batch, 2, past, 8]
  input %past_key_values.0.value: f32[batch, 2, past, 8]
  %size = Shape(%input_ids)
  %join = Concat(%size, %width) {axis: 0}
  %length = Shape(%attention_mask) {end: 2, start: 1}
  %total = Squeeze(%length) {axes: [0]}
  %cached = Shape(%past_key_values.1.key) {end: 3, start: 2}
  %places = Range(%zero, %total, %one)
  %new = Slice(%places, %cached, %end)
  %queries = Unsqueeze(%new) {axes: [1]}
  %earlier = LessOrEqual(%places, %queries)
  %token = Equal(%attention_mask, %one)
  %seen = Unsqueeze(%token) {axes: [1, 2]}
  %open = And(%earlier, %seen)
  %mask = Where(%open, %clear, %shut)
  %h.0.x = Gather(%embed, %input_ids) {axis: 0}
"#;

const LAYER: &str = r#"  weight %h.0.attn.q.weight: f32[16, 16] = random(SEED1)
  weight %h.0.attn.k.weight: f32[16, 16] = random(SEED2)
  weight %h.0.attn.v.weight: f32[16, 16] = random(SEED3)
  weight %h.0.attn.o.weight: f32[16, 16] = random(SEED4)
  %h.0.q.flat = MatMul(%h.0.x, %h.0.attn.q.weight)
  %h.0.k.flat = MatMul(%h.0.x, %h.0.attn.k.weight)
  %h.0.v.flat = MatMul(%h.0.x, %h.0.attn.v.weight)
  %h.0.q.split = Reshape(%h.0.q.flat, %split)
  %h.0.k.split = Reshape(%h.0.k.flat, %split)
  %h.0.v.split = Reshape(%h.0.v.flat, %split)
  %h.0.q = Transpose(%h.0.q.split) {perm: [0, 2, 1, 3]}
  %h.0.k = Transpose(%h.0.k.split) {perm: [0, 2, 1, 3]}
  %h.0.v = Transpose(%h.0.v.split) {perm: [0, 2, 1, 3]}
  %h.0.keys = Concat(%past_key_values.0.key, %h.0.k) {axis: 2}
  %h.0.values = Concat(%past_key_values.0.value, %h.0.v) {axis: 2}
  %h.0.turned = Transpose(%h.0.keys) {perm: [0, 1, 3, 2]}
  %h.0.product = MatMul(%h.0.q, %h.0.turned)
  %h.0.scaled = Mul(%h.0.product, %scale)
  %h.0.scores = Add(%h.0.scaled, %mask)
  %h.0.weights = Softmax(%h.0.scores) {axis: -1} "h.0/softmax"
  %h.0.mixed = MatMul(%h.0.weights, %h.0.values)
  %h.0.tokens = Transpose(%h.0.mixed) {perm: [0, 2, 1, 3]}
  %h.0.joined = Reshape(%h.0.tokens, %join)
  %h.0.out = MatMul(%h.0.joined, %h.0.attn.o.weight)
  %h.1.x = Add(%h.0.x, %h.0.out)
  output "present.0.key" %h.0.keys
  output "present.0.value" %h.0.values
"#;

/// The lines of a decoder. `change` is made to its first layer.
pub(crate) fn text(change: impl FnOnce(String) -> String) -> String {
    let seeded = |first: u32| {
        (1..=4).fold(LAYER.to_owned(), |text, i| text.replace(&format!("SEED{i}"), &(first + i).to_string()))
    };
    let second = seeded(20).replace("h.1.", "h.2.").replace("h.0", "h.1").replace(".0.key", ".1.key");
    let second = second.replace(".0.value", ".1.value");
    let end = "  %logits = MatMul(%h.2.x, %head)\n  output \"logits\" %logits\n}\n";
    [BEGIN, &change(seeded(10)), &second, end].concat()
}

/// Writes a graph as ONNX, with its weights beside it.
pub(crate) fn write(text: &str, directory: &Path) -> PathBuf {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let weights = graph.values().filter(|(_, v)| v.is_weight);
    let weights = weights.filter_map(|(_, v)| v.as_const().map(|t| (v.name.as_str(), t)));
    let file = WeightFile::plan(weights).expect("a layout");
    let mut out = File::create(directory.join("weights.safetensors")).expect("a file");
    file.write(&mut out, &mut |_| ()).expect("it is written");
    let external = ExternalWeights { location: "weights.safetensors", file: &file };
    let bytes = export(&graph, &ExportOptions { opset: 17, weights: Some(external) }).expect("it is written");
    let path = directory.join("m.onnx");
    std::fs::write(&path, bytes).expect("it is written");
    path
}

/// Some values of a graph for two rows of five tokens after a past, by their names.
pub(crate) fn evaluate(graph: &Graph, past: usize, wanted: &[ValueId]) -> Vec<Array> {
    let time = 5;
    let fill = |id: ValueId| {
        let value = graph.value(id);
        let numbers = |n: usize| (0..n).map(|i| (i * 7 % 13) as f64 / 13.0 - 0.5).collect::<Vec<f64>>();
        let array = match value.name.as_str() {
            "input_ids" => Array::from_i64(&[2, time], (0..2 * time as i64).map(|i| i * 11 % 48).collect()),
            "attention_mask" => Array::from_i64(&[2, past + time], vec![1; 2 * (past + time)]),
            name if name.ends_with("_state") => {
                let known = value.ty.shape.iter().flatten().skip(1).map(|d| d.known().expect("it is fixed"));
                let dims: Vec<usize> = std::iter::once(2).chain(known.map(|n| n as usize)).collect();
                Array::from_f64(&dims, vec![0.0; dims.iter().product()])
            }
            name if name.starts_with("past") => Array::from_f64(&[2, 2, past, 8], numbers(2 * 2 * past * 8)),
            name => panic!("nothing is known of input `{name}`"),
        };
        (id, array.expect("values fill dims"))
    };
    let given: BTreeMap<ValueId, Array> = graph.inputs().iter().map(|id| fill(*id)).collect();
    eval(graph, &given, wanted).unwrap_or_else(|e| panic!("{e}"))
}

/// The largest difference of two arrays, relative to the largest number.
pub(crate) fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let scale = b.to_f64().iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    let apart = a.to_f64().iter().zip(b.to_f64()).fold(0.0, |m: f64, (x, y)| m.max((x - y).abs()));
    apart / scale
}
