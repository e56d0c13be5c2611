//! A small decoder attention in the form our model families write it, for tests.

use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
use dijiang_format::names::POSITIONS;
use dijiang_format::recipe::{Attention, Decay, Feed, MapSpec, Readout, Recipe, Rule};
use std::collections::BTreeMap;

/// The names of the Rust files of a directory of this crate, without `mod` and `tests`, sorted: what a table beside
/// them must name.
pub(crate) fn file_stems(dir: &str) -> Vec<String> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let files = std::fs::read_dir(dir).expect("the directory").map(|entry| entry.expect("a file").path());
    let files = files.filter(|file| file.extension().is_some_and(|e| e == "rs"));
    let stems = files.map(|file| file.file_stem().expect("a name").to_string_lossy().into_owned());
    let mut stems: Vec<String> = stems.filter(|stem| stem != "mod" && stem != "tests").collect();
    stems.sort();
    stems
}

/// A recipe that asks for nothing of its own.
pub(crate) fn recipe() -> Recipe {
    Recipe {
        name: "test".to_owned(),
        attention: Attention::Linear,
        map: MapSpec::default(),
        decay: Decay::None,
        readout: Readout::Sum,
        by_position: None,
        rule: Rule::Linear,
        slots: None,
        local: None,
        feed: Feed::AtOnce,
        wide: None,
        both_ways: None,
        softmax_layers: Vec::new(),
        chunk: 64,
    }
}

pub(crate) const HEADS: i64 = 4;
pub(crate) const KV_HEADS: i64 = 2;
pub(crate) const HEAD_DIM: i64 = 8;
pub(crate) const HIDDEN: i64 = 16;

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// What a query of a test graph sees besides what is no padding.
#[derive(Clone, Copy, PartialEq)]
enum Sees {
    All,
    Earlier,
    /// So many places, its own among them.
    Window(u32),
}

/// One layer over `hidden` f32 `[batch, sequence, 16]`: 4 query heads on 2 key/value heads of 8, a
/// cache, a causal mask with key padding.
pub(crate) fn decoder() -> Graph {
    layer("decoder", Sees::Earlier, DType::F32)
}

/// The same with the position of each token as another input.
pub(crate) fn placed_decoder() -> Graph {
    let mut graph = decoder();
    let change = {
        let mut p = Patch::new(&graph, "testing");
        p.input(POSITIONS, DType::I64, vec![sym("batch"), sym("sequence")]);
        p.finish()
    };
    graph.apply(change).expect("the test graph is well-formed");
    graph
}

/// The same in f16.
pub(crate) fn half_decoder() -> Graph {
    layer("half_decoder", Sees::Earlier, DType::F16)
}

/// The same with a window of so many tokens.
pub(crate) fn windowed_decoder(tokens: u32) -> Graph {
    layer("windowed_decoder", Sees::Window(tokens), DType::F32)
}

/// The same without a cache and without an order: every query sees every key that is no padding.
pub(crate) fn encoder() -> Graph {
    layer("encoder", Sees::All, DType::F32)
}

/// Layers side by side over the same input: the first sees a window of so many tokens, the second all, the third a window
/// of so many. Their outputs are `y`, `y.1` and `y.2`.
pub(crate) fn windows_beside(first: u32, third: u32) -> Graph {
    layers("windows_beside", &[Sees::Window(first), Sees::Earlier, Sees::Window(third)], DType::F32)
}

fn layer(name: &str, sees: Sees, dtype: DType) -> Graph {
    layers(name, &[sees], dtype)
}

fn layers(name: &str, sees: &[Sees], dtype: DType) -> Graph {
    let causal = !sees.contains(&Sees::All);
    let mut graph = Graph::new(name);
    let change = {
        let mut p = Patch::new(&graph, "testing");
        let x = p.input("hidden", dtype, vec![sym("batch"), sym("sequence"), Dim::Known(HIDDEN as u64)]);
        let total = if causal { sym("past").plus(&sym("sequence")) } else { sym("sequence") };
        let mask = p.input("attention_mask", DType::I64, vec![sym("batch"), total]);
        for (n, sees) in sees.iter().enumerate() {
            let flat = attention(&mut p, [x, mask], n, *sees);
            p.output(&if n == 0 { "y".to_owned() } else { format!("y.{n}") }, flat);
        }
        p.finish()
    };
    graph.apply(change).expect("the test graph is well-formed");
    graph
}

fn attention(p: &mut Patch<'_>, [x, mask]: [ValueId; 2], n: usize, sees: Sees) -> ValueId {
    let bias = mask_bias(p, x, mask, sees);
    let module = format!("h.{n}.attn");
    p.set_scope(&module);
    let [q, mut k, mut v] = [("q_proj", HEADS), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)]
        .map(|(name, heads)| project(p, x, &module, (name, heads)));
    if sees != Sees::All {
        (k, v) = (cached(p, k, n, "key"), cached(p, v, n, "value"));
    }
    let (k, v) = (repeated(p, k), repeated(p, v));
    let transposed = p.transpose(k, &[0, 1, 3, 2]);
    let products = p.matmul(q, transposed);
    let scaled = p.mul_scalar(products, (HEAD_DIM as f64).sqrt().recip());
    let scores = p.add(scaled, bias);
    let probabilities = p.softmax(scores, -1);
    let mixed = p.matmul(probabilities, v);
    let transposed = p.transpose(mixed, &[0, 2, 1, 3]);
    p.reshape(transposed, &[0, 0, HEADS * HEAD_DIM])
}

fn mask_bias(p: &mut Patch<'_>, x: ValueId, mask: ValueId, sees: Sees) -> ValueId {
    let one = p.constant("one", Tensor::scalar(DType::I64, 1.0));
    let tokens = p.equal(mask, one);
    let mut open = p.unsqueeze(tokens, &[1, 2]);
    if sees != Sees::All {
        let earlier = earlier(p, x, mask, sees);
        open = p.and(earlier, open);
    }
    let dtype = p.dtype(x);
    let zero = p.constant("zero", Tensor::scalar(dtype, 0.0));
    let least = if dtype == DType::F16 { -65504.0 } else { -1e30 };
    let closed = p.constant("closed", Tensor::scalar(dtype, least));
    p.select(open, zero, closed)
}

/// Keys that are not later than the query, nor before its window.
fn earlier(p: &mut Patch<'_>, x: ValueId, mask: ValueId, sees: Sees) -> ValueId {
    let total = p.shape_of(mask, 1, 2);
    let time = p.shape_of(x, 1, 2);
    let past = p.sub(total, time);
    let total = p.squeeze(total, &[0]);
    let keys = p.range(total);
    let end = p.ints(&[i64::MAX]);
    let queries = p.slice_to(keys, 0, past, end);
    let queries = p.unsqueeze(queries, &[1]);
    let earlier = p.less_or_equal(keys, queries);
    let Sees::Window(tokens) = sees else { return earlier };
    let left = p.add_scalar(queries, -f64::from(tokens));
    let near = p.greater(keys, left);
    p.and(earlier, near)
}

fn project(p: &mut Patch<'_>, x: ValueId, module: &str, (name, heads): (&str, i64)) -> ValueId {
    let rows = heads * HEAD_DIM;
    let mut random = Random::named(1, name);
    let values: Vec<f32> = (0..rows * HIDDEN).map(|_| (random.normal() * 0.4) as f32).collect();
    let values = Tensor::from_f32(&[rows as u64, HIDDEN as u64], &values).cast(p.dtype(x));
    let weight = p.weight(&format!("{module}.{name}.weight"), values);
    let y = p.linear(x, weight, None);
    let y = p.reshape(y, &[0, 0, heads, HEAD_DIM]);
    p.transpose(y, &[0, 2, 1, 3])
}

fn cached(p: &mut Patch<'_>, x: ValueId, n: usize, part: &str) -> ValueId {
    let shape = vec![sym("batch"), Dim::Known(KV_HEADS as u64), sym("past"), Dim::Known(HEAD_DIM as u64)];
    let dtype = p.dtype(x);
    let past = p.input(&format!("past_key_values.{n}.{part}"), dtype, shape);
    let whole = p.concat(&[past, x], 2);
    p.output(&format!("present.{n}.{part}"), whole);
    whole
}

fn repeated(p: &mut Patch<'_>, x: ValueId) -> ValueId {
    let x = p.unsqueeze(x, &[2]);
    let shape = p.ints(&[1, 1, HEADS / KV_HEADS, 1, 1]);
    let x = p.node(Op::new("Expand"), &[x, shape]);
    p.reshape(x, &[0, HEADS, -1, HEAD_DIM])
}

/// Numbers, standard normal.
pub(crate) fn noise(dims: &[usize], seed: u64) -> Array {
    let mut random = Random::new(seed);
    let values = (0..dims.iter().product()).map(|_| random.normal()).collect();
    Array::from_f64(dims, values).expect("values fill dims")
}

/// Runs a graph on inputs given by name; returns all outputs by name.
pub(crate) fn run(graph: &Graph, inputs: &[(&str, Array)]) -> BTreeMap<String, Array> {
    let given = inputs.iter().filter_map(|(name, array)| Some((graph.input(name)?, array.clone()))).collect();
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|(_, v)| *v).collect();
    let values = eval(graph, &given, &wanted).expect("the graph runs");
    graph.outputs().iter().map(|(name, _)| name.clone()).zip(values).collect()
}

/// The largest difference of two arrays, relative to the largest number in the second.
pub(crate) fn relative_error(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let scale = b.to_f64().iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let difference = a.to_f64().iter().zip(b.to_f64()).fold(0.0, |m: f64, (x, y)| m.max((x - y).abs()));
    difference / scale
}
