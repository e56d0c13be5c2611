//! Gradients against central finite differences, all in the f64 interpreter.

use super::{AutodiffError, gradients};
use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Def, Graph, ValueId};
use crate::ir::patch::Patch;
use crate::ir::shape::Dim;
use crate::ir::text::parse;
use crate::ir::verify::verify;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

/// Distance between the points of a difference.
const STEP: f64 = 1e-4;

/// A difference of four points is wrong by h⁴/30 of the fifth derivative, 3e-18 of it, and by the
/// rounding of the loss, some 1e-16 / 1e-4 of it; losses here are below 1e3. The rest of the bound is for
/// the five digits that `erf` may lose in a difference.
pub(super) const TOLERANCE: f64 = 1e-7;

/// What named dims are in a check.
const SIZES: [(&str, usize); 3] = [("batch", 2), ("time", 3), ("wide", 5)];

pub(super) type Given = BTreeMap<ValueId, Array>;

/// Appends the loss Σ c_i · y_i over all float outputs, c_i an input for each.
pub(super) fn with_loss(graph: &mut Graph) {
    let change = {
        let mut p = Patch::new(graph, "loss");
        let outputs: Vec<(String, ValueId)> = graph.outputs().to_vec();
        let mut loss = None;
        for (label, value) in outputs {
            if !p.dtype(value).is_float() {
                continue;
            }
            let flat = p.reshape(value, &[-1]);
            let flat = p.cast(flat, DType::F32);
            let name = format!("c {label}");
            let factors = p.input(&name, DType::F32, vec![Dim::sym(&name)]);
            let term = p.matmul(flat, factors);
            loss = Some(loss.map_or(term, |loss| p.add(loss, term)));
        }
        p.output("loss", loss.expect("a float output"));
        p.finish()
    };
    graph.apply(change).expect("the loss is well-formed");
}

/// The float inputs and weights, but for the factors of the loss.
fn trained(graph: &Graph) -> Vec<ValueId> {
    let keep = |(id, value): (ValueId, &crate::ir::graph::Value)| {
        let source = match value.def {
            Def::Input => !value.name.starts_with("c "),
            Def::Const(_) => value.is_weight,
            Def::Output { .. } => false,
        };
        (source && value.ty.dtype.is_some_and(DType::is_float)).then_some(id)
    };
    graph.values().filter_map(keep).collect()
}

/// Appends the gradients of everything trained, each an output `grad NAME`.
pub(super) fn differentiate(graph: &mut Graph, loss: ValueId) -> Result<(), AutodiffError> {
    let change = {
        let wrt = trained(graph);
        let mut p = Patch::new(graph, "gradients");
        let grads = gradients(&mut p, loss, &wrt)?;
        for (value, grad) in wrt.iter().zip(grads) {
            let name = format!("grad {}", graph.value(*value).name);
            if let Some(grad) = grad {
                p.output(&name, grad);
            }
        }
        p.finish()
    };
    graph.apply(change).expect("the gradients are well-formed");
    assert_eq!(verify(graph), []);
    Ok(())
}

/// The graph of a text with the loss of [`with_loss`] and its gradients.
pub(super) fn gradients_of(text: &str) -> Graph {
    let mut graph = parse(text).expect("it parses");
    with_loss(&mut graph);
    let loss = graph.output("loss").expect("the loss");
    differentiate(&mut graph, loss).expect("it differentiates");
    graph
}

/// The graph of a text whose only output is the loss, with its gradients.
fn gradients_of_loss(text: &str) -> Result<Graph, AutodiffError> {
    let mut graph = parse(text).expect("it parses");
    let loss = graph.outputs()[0].1;
    differentiate(&mut graph, loss).map(|()| graph)
}

/// What the gradients of a text's only output fail with.
pub(super) fn gradient_error(text: &str) -> String {
    gradients_of_loss(text).expect_err("it must not differentiate").to_string()
}

/// How often an operator is written for the gradients of a text's only output.
pub(super) fn count_in_gradients(text: &str, op: &str) -> usize {
    let graph = gradients_of_loss(text).expect("it differentiates");
    graph.nodes().filter(|(_, n)| n.origin == "gradients" && n.op.is(op)).count()
}

/// The gradients of a text's only output at one point.
pub(super) fn gradients_at(text: &str, point: &[(&str, &[f64])]) -> BTreeMap<String, Vec<f64>> {
    let graph = gradients_of_loss(text).expect("it differentiates");
    let array = |x: &[f64]| Array::from_f64(&[x.len()], x.to_vec()).expect("a vector");
    let given: Given =
        point.iter().map(|(name, x)| (graph.input(name).expect("an input"), array(x))).collect();
    let grad = |(name, value): &(String, ValueId)| {
        let name = name.strip_prefix("grad ")?.to_owned();
        Some((name, eval(&graph, &given, &[*value]).expect("it runs")[0].to_f64()))
    };
    graph.outputs().iter().filter_map(grad).collect()
}

/// Random numbers for every float input and weight; inputs called `positive` lie in 0.5..1.5.
fn point(graph: &Graph) -> Given {
    let size = |dim: &Dim| match dim {
        Dim::Known(n) => *n as usize,
        other => {
            SIZES
                .iter()
                .find(|(name, _)| *name == other.to_string())
                .unwrap_or_else(|| panic!("no size for {other}"))
                .1
        }
    };
    let draw = |id: ValueId| {
        let value = graph.value(id);
        let dims: Vec<usize> = value.ty.shape.iter().flatten().map(size).collect();
        let mut random = Random::named(4, &value.name);
        let positive = value.name.starts_with("positive");
        let number = |_| if positive { 0.5 + random.uniform() } else { random.normal() };
        let numbers = (0..dims.iter().product()).map(number).collect();
        (id, Array::from_f64(&dims, numbers).expect("numbers fill dims"))
    };
    trained(graph).into_iter().map(draw).collect()
}

/// Adds random factors for each output of the loss.
pub(super) fn draw_factors(graph: &Graph, given: &mut Given) {
    for (label, value) in graph.outputs() {
        let Some(input) = graph.input(&format!("c {label}")) else { continue };
        let len = eval(graph, given, &[*value]).expect("it runs")[0].to_f64().len();
        given.insert(input, crate::testing::noise(&[len], 17 + u64::from(value.index())));
    }
}

pub(super) fn loss_at(graph: &Graph, given: &Given) -> f64 {
    let loss = graph.output("loss").expect("the loss");
    eval(graph, given, &[loss]).expect("it runs")[0].to_f64()[0]
}

/// The derivative of the loss by one value in a direction, by finite differences.
pub(super) fn difference(graph: &Graph, given: &Given, value: ValueId, direction: &[f64]) -> f64 {
    let at = |step: f64| {
        let mut moved = given.clone();
        let x = moved.get_mut(&value).expect("a given value");
        if let Array::F(x) = x {
            x.iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
        }
        loss_at(graph, &moved)
    };
    (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP)
}

/// Every element of the gradient of every float input and weight against a finite difference.
pub(super) fn gradcheck(text: &str) {
    let graph = gradients_of(text);
    let mut given = point(&graph);
    draw_factors(&graph, &mut given);
    for value in trained(&graph) {
        let name = &graph.value(value).name;
        let len = given[&value].to_f64().len();
        let grad = match graph.output(&format!("grad {name}")) {
            Some(grad) => {
                let grad = eval(&graph, &given, &[grad]).expect("the gradient runs").remove(0);
                assert_eq!(grad.shape(), given[&value].shape(), "{name} of {text}");
                grad.to_f64()
            }
            None => vec![0.0; len],
        };
        for (i, found) in grad.iter().enumerate() {
            let mut direction = vec![0.0; len];
            direction[i] = 1.0;
            let want = difference(&graph, &given, value, &direction);
            let error = (found - want).abs() / want.abs().max(1.0);
            assert!(error < TOLERANCE, "{name}[{i}]: {found}, expected {want}, of {text}");
        }
    }
}
