//! Whole graphs, and what cannot be differentiated.

use super::gradcheck::{
    TOLERANCE, difference, differentiate, draw_factors, gradient_error, gradients_of, with_loss,
};
use super::{AutodiffError, gradients};
use crate::attention::lower::Form;
use crate::attention::tests::{every_recipe, inputs, lowered};
use crate::feature_map::added::{is_added, is_fixed};
use crate::ir::eval::{Array, eval};
use crate::ir::graph::Graph;
use crate::ir::patch::Patch;
use crate::ir::text::{parse, print};
use crate::numeric::random::Random;
use crate::testing;
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

const HEAD: &str = r#"graph "head" {
  input %x: f32[batch, time, 4]
  input %bias: f32[time, time]
  weight %q: f32[4, 4] = random(1)
  weight %k: f32[4, 4] = random(2)
  weight %v: f32[4, 4] = random(3)
  %queries = MatMul(%x, %q) "q"
  %keys = MatMul(%x, %k) "k"
  %values = MatMul(%x, %v) "v"
  %transposed = Transpose(%keys) {perm: [0, 2, 1]} "turn"
  %scores = MatMul(%queries, %transposed) "scores"
  %masked = Add(%scores, %bias) "mask"
  %weights = Softmax(%masked) "softmax"
  %mixed = MatMul(%weights, %values) "mix"
  %square = Mul(%mixed, %mixed) "square"
  %loss = ReduceMean(%square) {keepdims: 0} "mean"
  output "loss" %loss
}"#;

#[test]
fn one_head_in_text() {
    let mut graph = parse(HEAD).expect("it parses");
    let loss = graph.output("loss").expect("the loss");
    let weights: Vec<_> = ["q", "k", "v"].map(|name| graph.find_value(name).expect("a weight")).to_vec();
    let change = {
        let mut p = Patch::new(&graph, "gradients");
        let grads = gradients(&mut p, loss, &weights).expect("it differentiates");
        for (name, grad) in ["q", "k", "v"].iter().zip(grads) {
            p.output(&format!("grad {name}"), grad.expect("a gradient"));
        }
        p.finish()
    };
    graph.apply(change).expect("it applies");
    insta::assert_snapshot!(print(&graph));
}

#[test]
fn one_head_by_finite_differences() {
    super::gradcheck::gradcheck(&HEAD.replace("output \"loss\"", "output \"y\""));
}

/// The derivative of the loss in a random direction of every float input and weight.
fn check_directions(graph: &mut Graph, given: &[(&str, Array)], what: &str) {
    with_loss(graph);
    let loss = graph.output("loss").expect("the loss");
    differentiate(graph, loss).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut point: BTreeMap<_, _> =
        given.iter().filter_map(|(name, x)| Some((graph.input(name)?, x.clone()))).collect();
    for (id, value) in graph.values().filter(|(_, v)| v.is_weight) {
        point.insert(id, Array::from_tensor(value.as_const().expect("a weight")).expect("numbers"));
    }
    draw_factors(graph, &mut point);
    let mut checked = 0;
    for (label, grad) in graph.outputs() {
        let Some(name) = label.strip_prefix("grad ") else { continue };
        let value = graph.find_value(name).expect("what the gradient is of");
        let grad = eval(graph, &point, &[*grad]).unwrap_or_else(|e| panic!("{what}: {e}"))[0].to_f64();
        let mut random = Random::named(7, name);
        let direction: Vec<f64> = grad.iter().map(|_| random.normal()).collect();
        let found: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let want = difference(graph, &point, value, &direction);
        let error = (found - want).abs() / want.abs().max(1.0);
        assert!(error < TOLERANCE, "{what}, {name}: {found}, expected {want}");
        checked += 1;
    }
    // The hidden state, three projections, two parts of the state, and a parameter at least, where there is one.
    let learns = graph.consts().any(|(_, name, _)| is_added(name) && !is_fixed(name));
    assert!(checked >= 6 + usize::from(learns), "{what}: only {checked} gradients");
}

#[test]
fn whole_layers_by_finite_differences() {
    for recipe in every_recipe() {
        // A sequence of three whole chunks and one that is padded, with a past and padding tokens.
        for form in [Form::Parallel, Form::Chunked(3), Form::Chunked(64)] {
            let (mut graph, _) = lowered(&recipe, form);
            let mut given = inputs(&recipe, 7, 2);
            for (seed, (_, state)) in given.iter_mut().skip(2).take(2).enumerate() {
                let dims = state.shape().to_vec();
                let positive = testing::noise(&dims, seed as u64).to_f64().iter().map(|x| x.abs()).collect();
                *state = Array::from_f64(&dims, positive).expect("a state");
            }
            let what = format!("{} {:?} {:?} {form:?}", recipe.map.kind, recipe.decay, recipe.readout);
            check_directions(&mut graph, &given, &what);
        }
    }
}

#[test]
fn operators_without_a_rule_are_named() {
    insta::assert_snapshot!(gradient_error(
        r#"graph "g" {
  input %x: f32[2, 2]
  %y = ReduceProd(%x) {keepdims: 0} "product of all"
  output "y" %y
}"#
    ));
    insta::assert_snapshot!(gradient_error(
        r#"graph "g" {
  input %x: f32[2, 2]
  %y = org.example.Mystery(%x) "unknown"
  %z = Cast(%y) {to: "f32"}
  const %none: i64[0] = []
  %w = Reshape(%z, %none)
  output "w" %w
}"#
    ));
}

#[test]
fn operators_beside_the_path_need_no_rule() {
    let graph = gradients_of(
        r#"graph "g" {
  input %x: f32[2, 2]
  const %c: f32[2] = [2.0, 3.0]
  %scale = ReduceProd(%c) {keepdims: 0} "product of all"
  %y = Mul(%x, %scale)
  output "y" %y
}"#,
    );
    assert!(graph.output("grad x").is_some());
}

#[test]
fn a_loss_is_one_float() {
    insta::assert_snapshot!(gradient_error(
        r#"graph "g" {
  input %x: f32[2, time]
  %y = Exp(%x) "exp"
  output "y" %y
}"#
    ));
}

#[test]
fn values_of_the_patch_are_refused_and_what_does_not_depend_has_none() {
    let graph = parse(
        r#"graph "g" {
  input %x: f32[3]
  input %n: i64[3]
  input %apart: f32[3]
  %f = Cast(%n) {to: "f32"}
  %p = Mul(%f, %x)
  %s = ReduceSum(%p) {keepdims: 0}
  %a = Exp(%apart)
  output "s" %s
  output "a" %a
}"#,
    )
    .expect("it parses");
    let find = |name: &str| graph.find_value(name).expect("a value");
    let mut p = Patch::new(&graph, "gradients");
    let new = p.exp(find("s"));
    let error = gradients(&mut p, new, &[find("x")]).expect_err("the loss is not of the graph");
    assert!(matches!(error, AutodiffError::NotInGraph { .. }), "{error}");
    let wrt = [find("x"), find("n"), find("apart"), find("p"), find("s")];
    let grads = gradients(&mut p, find("s"), &wrt).expect("it differentiates");
    assert_eq!(grads.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true, true]);
    assert_eq!(p.ty(grads[3].expect("of an inner value")).to_string(), "f32[3]");
    assert_eq!(p.dtype(grads[4].expect("of the loss itself")), DType::F32);
}
