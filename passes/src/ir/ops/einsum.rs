//! `Einsum` with one letter per axis: sums over what is not in the result. An ellipsis stands for axes that are counted from
//! the last, and are of one size in all operands. No letter stands twice in one operand.

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
pub(crate) struct Equation {
    pub(crate) operands: Vec<Vec<char>>,
    pub(crate) result: Vec<char>,
}

/// `ranks` has the number of axes of each operand, where it is known.
pub(crate) fn equation(op: &Op, ranks: &[Option<usize>]) -> Result<Equation, String> {
    let text: String = op.str("equation").unwrap_or_default().split_whitespace().collect();
    let fail = || format!("equation `{text}` is not supported for {} inputs", ranks.len());
    let (left, right) = text.split_once("->").map_or((text.as_str(), None), |(l, r)| (l, Some(r)));
    let parts: Vec<&str> = left.split(',').collect();
    if parts.len() != ranks.len() {
        return Err(fail());
    }
    let spread = parts.iter().zip(ranks).map(|(part, rank)| spread(part, *rank));
    let spread: Vec<usize> = spread.collect::<Option<_>>().ok_or_else(fail)?;
    let letters = parts.iter().zip(&spread).map(|(part, count)| letters(part, *count));
    let operands: Vec<Vec<char>> = letters.collect();
    let is_plain = |letters: &Vec<char>| {
        letters.iter().enumerate().all(|(i, c)| c.is_ascii_alphanumeric() && !letters[..i].contains(c))
    };
    let most = spread.iter().copied().max().unwrap_or(0);
    let result = right.map_or_else(|| implied(&operands, most), |right| self::letters(right, most));
    let known = result.iter().all(|c| operands.iter().any(|o| o.contains(c)));
    if !known || !operands.iter().all(is_plain) || !is_plain(&result) {
        return Err(fail());
    }
    Ok(Equation { operands, result })
}

const ELLIPSIS: &str = "...";

/// How many axes the ellipsis of an operand stands for; none where it is not known.
fn spread(part: &str, rank: Option<usize>) -> Option<usize> {
    match part.contains(ELLIPSIS) {
        true => rank?.checked_sub(part.len() - ELLIPSIS.len()).filter(|count| *count < 10),
        false => Some(0),
    }
}

/// The letters of an operand; digits, counted from the last axis, stand for those of an ellipsis.
fn letters(part: &str, spread: usize) -> Vec<char> {
    let digits: String = ('0'..='9').take(spread).collect::<Vec<char>>().into_iter().rev().collect();
    part.replacen(ELLIPSIS, &digits, 1).chars().collect()
}

/// The result where none is written: what the ellipses stand for, and the letters that stand once, in their order.
fn implied(operands: &[Vec<char>], spread: usize) -> Vec<char> {
    let all: Vec<char> = operands.iter().flatten().copied().filter(char::is_ascii_alphabetic).collect();
    let once = |c: &&char| all.iter().filter(|d| d == c).count() == 1;
    let mut result: Vec<char> = all.iter().filter(once).copied().collect();
    result.sort_unstable();
    [letters(ELLIPSIS, spread), result].concat()
}

fn infer(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..ctx.inputs.len())?;
    let ranks: Vec<Option<usize>> = (0..ctx.inputs.len()).map(|i| ctx.shape(i).map(Vec::len)).collect();
    if ranks.contains(&None) {
        return Ok(vec![Type::maybe(dtype, None)]);
    }
    let equation = equation(ctx.op, &ranks)?;
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
    let inputs: Vec<&ArrayD<f64>> = (0..ctx.inputs.len()).map(|i| ctx.f(i)).collect::<Result<_, _>>()?;
    let ranks: Vec<Option<usize>> = inputs.iter().map(|x| Some(x.ndim())).collect();
    let equation = equation(ctx.op, &ranks)?;
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

#[cfg(test)]
mod tests {
    use crate::ir::eval::{Array, eval};
    use crate::ir::text::{parse, print};
    use std::collections::BTreeMap;

    fn typed(equation: &str) -> Result<String, String> {
        let text = format!(
            "graph \"g\" {{\n  input %a: f32[batch, 2, time, 4]\n  input %b: f32[batch, 2, keys, 4]\n  %y = Einsum(%a, %b) {{equation: \"{equation}\"}}\n  output \"y\" %y\n}}"
        );
        let graph = parse(&text).map_err(|e| e.to_string())?;
        Ok(graph.value(graph.outputs()[0].1).ty.to_string())
    }

    #[test]
    fn an_ellipsis_stands_for_the_axes_that_are_left() {
        assert_eq!(typed("...qd,...kd->...qk"), Ok("f32[batch, 2, time, keys]".to_owned()));
        // The letters of a result that is not written are sorted.
        assert_eq!(typed("...qd,...kd"), Ok("f32[batch, 2, keys, time]".to_owned()));
        assert!(typed("...abcde,...kd->...k").is_err());
        let text = "graph \"g\" {\n  input %a: f32[2, 3]\n  %y = Einsum(%a) {equation: \"...d->...\"}\n  output \"y\" %y\n}";
        let graph = parse(text).expect("it parses");
        assert!(print(&graph).contains(": f32[2]"));
        let a = Array::from_f64(&[2, 3], (0..6).map(f64::from).collect()).expect("six numbers");
        let y = eval(&graph, &BTreeMap::from([(graph.inputs()[0], a)]), &[graph.outputs()[0].1]);
        assert_eq!(y.expect("it runs")[0].to_f64(), [3.0, 12.0]);
    }
}
