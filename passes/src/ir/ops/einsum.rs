//! `Einsum` with one letter per axis: sums over what is not in the result. No ellipsis, no
//! repeated letters within one operand.

use super::ROW;
use super::elementwise::same_dtype;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::Dim;
use ndarray::{ArrayD, Dimension, IxDyn};
use std::collections::BTreeMap;

pub(super) const OPS: &[OpSpec] = &[OpSpec {
    name: "Einsum",
    inputs: 1..=8,
    attrs: &[("equation", AttrSpec::Str(""))],
    infer,
    eval,
    ..ROW
}];

/// The letters of the operands, and those of the result.
struct Equation {
    operands: Vec<Vec<char>>,
    result: Vec<char>,
}

fn equation(op: &Op, inputs: usize) -> Result<Equation, String> {
    let text: String = op.str("equation").unwrap_or_default().split_whitespace().collect();
    let (left, right) = text.split_once("->").unwrap_or((&text, ""));
    let operands: Vec<Vec<char>> = left.split(',').map(|o| o.chars().collect()).collect();
    let fail = || Err(format!("equation `{text}` is not supported for {inputs} inputs"));
    let is_plain = |letters: &Vec<char>| {
        letters.iter().enumerate().all(|(i, c)| c.is_ascii_alphabetic() && !letters[..i].contains(c))
    };
    let mut result: Vec<char> = right.chars().collect();
    if !text.contains("->") {
        let all: Vec<char> = operands.iter().flatten().copied().collect();
        result = all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1).collect();
        result.sort_unstable();
    }
    let known = result.iter().all(|c| operands.iter().any(|o| o.contains(c)));
    if operands.len() != inputs || !known || !operands.iter().all(is_plain) || !is_plain(&result) {
        return fail();
    }
    Ok(Equation { operands, result })
}

fn infer(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..ctx.inputs.len())?;
    let equation = equation(ctx.op, ctx.inputs.len())?;
    let mut dims: BTreeMap<char, Dim> = BTreeMap::new();
    for (i, letters) in equation.operands.iter().enumerate() {
        let Some(shape) = ctx.shape(i) else { return Ok(vec![Type::maybe(dtype, None)]) };
        if shape.len() != letters.len() {
            return Err(format!("input {i} has rank {}, expected {}", shape.len(), letters.len()));
        }
        for (letter, dim) in letters.iter().zip(shape) {
            let known = dims.entry(*letter).or_insert(Dim::Unknown);
            if !known.agrees(dim) {
                return Err(format!("`{letter}` is both {known} and {dim}"));
            }
            *known = known.meet(dim);
        }
    }
    let shape = equation.result.iter().map(|c| dims[c].clone()).collect();
    Ok(vec![Type::maybe(dtype, Some(shape))])
}

fn eval(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let equation = equation(ctx.op, ctx.inputs.len())?;
    let inputs: Vec<&ArrayD<f64>> = (0..ctx.inputs.len()).map(|i| ctx.f(i)).collect::<Result<_, _>>()?;
    let mut sizes: BTreeMap<char, usize> = BTreeMap::new();
    for (letters, x) in equation.operands.iter().zip(&inputs) {
        if letters.len() != x.ndim() {
            return Err(format!("{:?} does not have the axes {letters:?}", x.shape()));
        }
        for (letter, n) in letters.iter().zip(x.shape()) {
            if *sizes.entry(*letter).or_insert(*n) != *n {
                return Err(format!("`{letter}` is both {} and {n}", sizes[letter]));
            }
        }
    }
    let summed: Vec<char> = sizes.keys().copied().filter(|c| !equation.result.contains(c)).collect();
    let dims = |letters: &[char]| -> Vec<usize> { letters.iter().map(|c| sizes[c]).collect() };
    let mut place: BTreeMap<char, usize> = BTreeMap::new();
    let out = ArrayD::from_shape_fn(IxDyn(&dims(&equation.result)), |kept| {
        place.extend(equation.result.iter().copied().zip(kept.slice().iter().copied()));
        let mut sum = 0.0;
        for free in ndarray::indices(IxDyn(&dims(&summed))) {
            place.extend(summed.iter().copied().zip(free.slice().iter().copied()));
            let at = |letters: &[char]| -> Vec<usize> { letters.iter().map(|c| place[c]).collect() };
            sum += equation.operands.iter().zip(&inputs).map(|(l, x)| x[IxDyn(&at(l))]).product::<f64>();
        }
        sum
    });
    Ok(vec![Array::F(out)])
}
