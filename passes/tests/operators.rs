//! Single operators in the f64 interpreter, against what ONNX Runtime computed for them
//! (`operators/reference.txt`, written by `operators/make.py`).

use dijiang_format::dtype::DType;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::shape::Dim;
use dijiang_passes::ir::text::parse;
use std::collections::{BTreeMap, BTreeSet};

/// ONNX Runtime computes in f32; its slowest kernel is right to 4e-6 on numbers of up to 20.
const TOLERANCE: f64 = 1e-5;

const REFERENCE: &str = include_str!("operators/reference.txt");

/// A graph without inputs, and its outputs by name.
struct Case {
    graph: Graph,
    expected: BTreeMap<String, Array>,
}

/// `o0: f32[2] = [1.0, 2.0]`, read as a constant of a graph.
fn expectation(line: &str) -> (String, Array) {
    let (name, rest) = line.split_once(':').expect("a name and a tensor");
    let text = format!("graph \"e\" {{\n  const %{name}:{rest}\n  output \"{name}\" %{name}\n}}");
    let graph = parse(&text).unwrap_or_else(|e| panic!("{line}: {e}"));
    let (_, _, tensor) = graph.consts().next().expect("the constant");
    (name.to_owned(), Array::from_tensor(tensor).expect("its elements"))
}

fn case(text: &str) -> Case {
    let (graph, expected) = text.split_once("\nexpect ").expect("a graph and what is expected of it");
    let graph = parse(graph).unwrap_or_else(|e| panic!("{graph}\n{e}"));
    Case { graph, expected: expected.split("\nexpect ").map(|l| expectation(l.trim())).collect() }
}

fn cases() -> Vec<Case> {
    REFERENCE.split("\n\n").map(case).collect()
}

fn agrees(found: &Array, want: &Array) -> bool {
    let close =
        |a: &f64, b: &f64| (a - b).abs() <= TOLERANCE * b.abs().max(1.0) || (a.is_nan() && b.is_nan());
    found.shape() == want.shape() && found.to_f64().iter().zip(want.to_f64()).all(|(a, b)| close(a, &b))
}

#[test]
fn operators_compute_what_onnx_runtime_computes() {
    let mut wrong = Vec::new();
    for Case { graph, expected } in cases() {
        let (_, node) = graph.nodes().next().expect("one node");
        for (name, want) in &expected {
            let value = graph.output(name).expect("an output of the graph");
            let label = format!("{} {:?} {name}", node.op.qualified_name(), node.op.attrs);
            match eval(&graph, &BTreeMap::new(), &[value]) {
                Ok(found) if agrees(&found[0], want) => {}
                Ok(found) => wrong.push(format!("{label}: {:?}, expected {want:?}", found[0])),
                Err(e) => wrong.push(format!("{label}: {e}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn inferred_types_are_those_of_what_is_computed() {
    for Case { graph, expected } in cases() {
        for (name, want) in &expected {
            let value = graph.value(graph.output(name).expect("an output of the graph"));
            let dims: Vec<Dim> = want.shape().iter().map(|d| Dim::Known(*d as u64)).collect();
            let (_, node) = graph.nodes().next().expect("one node");
            assert_eq!(value.ty.shape.as_ref(), Some(&dims), "{} {name}", node.op.qualified_name());
            let kind = match want {
                Array::F(_) => value.ty.dtype.is_some_and(DType::is_float),
                Array::I(_) => value.ty.dtype.is_some_and(DType::is_int),
                Array::B(_) => value.ty.dtype == Some(DType::Bool),
            };
            assert!(kind, "{} {name} is {}", node.op.qualified_name(), value.ty);
        }
    }
}

#[test]
fn the_fused_operators_have_a_case_each() {
    let all = cases();
    let seen: BTreeSet<String> =
        all.iter().flat_map(|c| c.graph.nodes().map(|(_, n)| n.op.qualified_name())).collect();
    // The linear attention of ONNX Runtime is tested where it is emitted.
    let ours = |name: &str| name == "LinearAttention";
    let missing: Vec<&str> = dijiang_passes::ir::ops::all()
        .filter(|s| !s.domain.is_empty() && !ours(s.name))
        .map(|s| s.name)
        .filter(|name| !seen.contains(&format!("com.microsoft.{name}")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
