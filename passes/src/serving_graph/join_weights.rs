//! Weights that are stored apart and read as one: rows of them, scaled, summed and side by side. Fusions write them with
//! ordinary operators; where weights are inputs of a graph, one input stands for all of it, by the name that
//! [`dijiang_format::joined`] gives, and is computed when the graph loads.

use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use crate::ir::walk::{depth_first_from, inputs_of};
use dijiang_format::dtype::DType;
use dijiang_format::joined::{self, Factor, MOST_PARTS, Part, RowRange, Term, WeightPart};
use std::collections::{BTreeMap, BTreeSet};

/// Those rows of a weight, with ordinary operators.
pub(crate) fn rows(p: &mut Patch<'_>, weight: ValueId, rows: RowRange) -> ValueId {
    let RowRange { begin, end, every } = rows;
    let blocks = p.known_dim(weight, 0) as i64 / every as i64;
    let rest: Vec<i64> = (1..p.rank(weight)).map(|axis| p.known_dim(weight, axis) as i64).collect();
    let apart = p.reshape(weight, &[&[blocks, every as i64], &rest[..]].concat());
    let taken = p.slice(apart, 1, begin as i64, end as i64);
    p.reshape(taken, &[&[blocks * (end - begin) as i64], &rest[..]].concat())
}

/// Sigmoid of a number per head, or of its negative, for each of `each` neighbours of a head: `[heads · each]`, with
/// ordinary operators.
pub(crate) fn shares(p: &mut Patch<'_>, logits: ValueId, each: i64, is_rest: bool) -> ValueId {
    let heads = p.known_dim(logits, 0) as i64;
    let logits = if is_rest { p.node(Op::new("Neg"), &[logits]) } else { logits };
    let shares = p.sigmoid(logits);
    let shares = p.unsqueeze(shares, &[1]);
    let shape = p.ints(&[heads, each]);
    let spread = p.expand(shares, shape);
    p.reshape(spread, &[heads * each])
}

/// What [`shares`] wrote.
fn some_shares(graph: &Graph, value: ValueId) -> Option<Factor> {
    let [Dim::Known(_)] = shape(graph, value)? else { return None };
    let spread = graph.made_by(graph.made_by(value, "Reshape")?.input(0)?, "Expand")?;
    let column =
        graph.made_by(spread.input(0)?, "Unsqueeze").filter(|node| node.op.ints("axes") == Some(&[1]))?;
    let shares = graph.made_by(uncast(graph, column.input(0)?), "Sigmoid")?.input(0)?;
    let negated = graph.made_by(shares, "Neg").and_then(|node| node.input(0));
    let logits = negated.unwrap_or(shares);
    let ([Dim::Known(heads)], [Dim::Known(own), Dim::Known(_)]) =
        (shape(graph, logits)?, shape(graph, spread.outputs[0])?)
    else {
        return None;
    };
    let name = weight_name(graph, logits).filter(|_| heads == own)?;
    Some(Factor::Shares { name, is_rest: negated.is_some() })
}

/// A part, and how many rows it has.
struct Rows {
    part: Part,
    count: usize,
}

/// What a value is made of, where that is weights and nothing else.
fn parts(graph: &Graph, value: ValueId) -> Option<Vec<Rows>> {
    let value = uncast(graph, value);
    if let Some(rows) = some_rows(graph, value) {
        return Some(vec![Rows { part: Part::of(Term::stored(rows)), count: rows_of(graph, value)? }]);
    }
    let (node, _) = graph.producer(value)?;
    let node = graph.node(node);
    if node.op.is("Concat") && node.op.int("axis") == Some(0) {
        return joined(graph, node);
    }
    // What is computed is computed in f32.
    graph.value(value).ty.dtype.filter(|dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16))?;
    match node.op.name() {
        "Concat" if is_last_axis(graph, node, value) => side_by_side(graph, node),
        "Add" => sum(graph, node, value),
        "Neg" => each_term(parts(graph, node.input(0)?)?, |term| {
            Some(Term { is_negated: !term.is_negated, ..term })
        }),
        "Mul" => multiplied(graph, [node.input(0)?, node.input(1)?], column_factor),
        "MatMul" => multiplied(graph, [node.input(0)?, node.input(1)?], |graph, vector| {
            weight_name(graph, vector).map(Factor::Vector)
        }),
        _ => None,
    }
}

/// Without the casts between floats that made it: a runtime rounds a weight where it reads it.
pub(crate) fn uncast(graph: &Graph, value: ValueId) -> ValueId {
    let is_float = |value: ValueId| graph.value(value).ty.dtype.is_some_and(DType::is_float);
    match graph.made_by(value, "Cast").and_then(|cast| cast.input(0)) {
        Some(wide) if is_float(value) && is_float(wide) => uncast(graph, wide),
        _ => value,
    }
}

fn shape(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    graph.value(value).ty.shape.as_deref()
}

fn rows_of(graph: &Graph, value: ValueId) -> Option<usize> {
    usize::try_from(shape(graph, value)?.first()?.known()?).ok()
}

fn joined(graph: &Graph, node: &Node) -> Option<Vec<Rows>> {
    let mut all = Vec::new();
    for part in &node.inputs {
        all.extend(parts(graph, (*part)?)?);
        if all.iter().map(|rows| rows.part.terms()).sum::<usize>() > MOST_PARTS {
            return None;
        }
    }
    Some(all)
}

fn is_last_axis(graph: &Graph, node: &Node, value: ValueId) -> bool {
    let rank = graph.value(value).ty.rank().unwrap_or_default() as i64;
    rank > 1 && matches!(node.op.int("axis"), Some(axis) if axis == -1 || axis == rank - 1)
}

fn side_by_side(graph: &Graph, node: &Node) -> Option<Vec<Rows>> {
    let (mut sides, mut count) = (Vec::new(), 0);
    for side in &node.inputs {
        let [rows]: [Rows; 1] = parts(graph, (*side)?)?.try_into().ok()?;
        sides.extend(rows.part.sides);
        count = rows.count;
    }
    Some(vec![Rows { part: Part { sides }, count }])
}

fn sum(graph: &Graph, node: &Node, value: ValueId) -> Option<Vec<Rows>> {
    let whole = shape(graph, value)?;
    let summand = |slot: usize| {
        let part = node.input(slot).filter(|part| shape(graph, *part) == Some(whole))?;
        parts(graph, part)
    };
    let (a, b) = (summand(0)?, summand(1)?);
    if !a.iter().map(|rows| rows.count).eq(b.iter().map(|rows| rows.count)) {
        return None;
    }
    let both = a.into_iter().zip(b).map(|(a, b)| {
        let [mut one]: [Vec<Term>; 1] = a.part.sides.try_into().ok()?;
        let [other]: [Vec<Term>; 1] = b.part.sides.try_into().ok()?;
        one.extend(other);
        Some(Rows { part: Part { sides: vec![one] }, count: a.count })
    });
    both.collect()
}

fn column_factor(graph: &Graph, vector: ValueId) -> Option<Factor> {
    weight_name(graph, vector).map(Factor::Columns).or_else(|| some_shares(graph, vector))
}

/// A matrix by a vector of one number for each column.
fn multiplied(
    graph: &Graph,
    [matrix, vector]: [ValueId; 2],
    by: fn(&Graph, ValueId) -> Option<Factor>,
) -> Option<Vec<Rows>> {
    let vector = uncast(graph, vector);
    let (matrix_shape, vector_shape) = (shape(graph, matrix)?, shape(graph, vector)?);
    if matrix_shape.len() != 2 || vector_shape.len() != 1 || matrix_shape[1] != vector_shape[0] {
        return None;
    }
    let factor = by(graph, vector)?;
    let rows = parts(graph, matrix)?;
    // Of two sides each would need its own columns of the vector.
    if rows.iter().any(|rows| rows.part.sides.len() > 1) {
        return None;
    }
    each_term(rows, |term| term.by.is_none().then(|| Term { by: Some(factor.clone()), ..term }))
}

fn each_term(parts: Vec<Rows>, change: impl Fn(Term) -> Option<Term>) -> Option<Vec<Rows>> {
    let side = |side: Vec<Term>| side.into_iter().map(&change).collect::<Option<Vec<Term>>>();
    let rows = |rows: Rows| {
        let sides = rows.part.sides.into_iter().map(side).collect::<Option<_>>()?;
        Some(Rows { part: Part { sides }, count: rows.count })
    };
    parts.into_iter().map(rows).collect()
}

/// Whether a value is a weight, or is computed of weights as [`dijiang_format::joined`] can say.
pub(crate) fn is_stored(graph: &Graph, value: ValueId) -> bool {
    parts(graph, value).is_some()
}

/// Whether a matrix times a vector of one number for each column is stored too.
pub(crate) fn can_scale(graph: &Graph, matrix: ValueId, vector: ValueId) -> bool {
    multiplied(graph, [matrix, vector], column_factor).is_some()
}

/// How many weights a stored value is made of.
pub(crate) fn count(graph: &Graph, stored: ValueId) -> usize {
    parts(graph, stored).map_or(1, |parts| parts.iter().map(|rows| rows.part.terms()).sum())
}

/// The name of a weight, where it can stand in the name of a join.
fn weight_name(graph: &Graph, value: ValueId) -> Option<String> {
    let value = graph.value(value);
    let fits = value.is_weight && value.ty.rank()? > 0 && WeightPart::can_be(&value.name);
    fits.then(|| value.name.clone())
}

/// A weight, or what [`rows`] wrote.
fn some_rows(graph: &Graph, value: ValueId) -> Option<WeightPart> {
    if let Some(name) = weight_name(graph, value) {
        return Some(WeightPart::whole(&name));
    }
    let ints = |value: Option<ValueId>| graph.as_const(value?)?.to_i64();
    let slice = graph.made_by(graph.made_by(value, "Reshape")?.input(0)?, "Slice")?;
    let apart = slice.input(0)?;
    let weight = graph.made_by(apart, "Reshape")?.input(0)?;
    let name = weight_name(graph, weight)?;
    let shape = |value: ValueId| graph.value(value).ty.shape.clone();
    let (whole, blocks, taken) = (shape(weight)?, shape(apart)?, shape(value)?);
    let [begin, end] = [ints(slice.input(1))?, ints(slice.input(2))?].map(|bound| bound.first().copied());
    let (begin, end, every) = (begin?, end?, blocks.get(1)?.known()? as i64);
    let by_blocks = blocks.len() == whole.len() + 1
        && blocks[2..] == whole[1..]
        && taken.len() == whole.len()
        && taken[1..] == whole[1..]
        && slice.inputs.len() == 4
        && ints(slice.input(3))? == [1]
        && begin >= 0;
    let rows = RowRange::new(begin as usize, usize::try_from(end).ok()?, every as usize)?;
    by_blocks.then_some(WeightPart { name, rows: Some(rows) })
}

/// Makes one input of each join of weights, under its name.
pub(crate) fn as_inputs(graph: &mut Graph) -> Result<(), PatchError> {
    let change = {
        let mut p = Patch::new(graph, "joined_weights");
        let (mut inner, mut inputs) = (BTreeSet::new(), BTreeMap::new());
        for id in graph.order().into_iter().rev() {
            let node = graph.node(id);
            let Some(value) = node.outputs.first().copied() else { continue };
            let Some(parts) = parts(graph, value) else { continue };
            let before = node.inputs.iter().flatten().copied();
            inner.extend(depth_first_from(before, |value| inputs_of(graph, value)));
            let ty = &graph.value(value).ty;
            let (Some(dtype), Some(shape), false) = (ty.dtype, ty.shape.clone(), inner.contains(&value))
            else {
                continue;
            };
            let parts: Vec<Part> = parts.into_iter().map(|rows| rows.part).collect();
            let name = joined::print(&parts);
            let there = graph.find_value(&name).or_else(|| inputs.get(&name).copied());
            if there.is_some_and(|there| p.ty(there).dtype != Some(dtype)) {
                continue;
            }
            let input = there.unwrap_or_else(|| p.input(&name, dtype, shape));
            inputs.insert(name, input);
            p.replace(value, input);
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};

    #[test]
    fn what_is_computed_of_weights_becomes_inputs() {
        let mut graph = parse(
            r#"graph "g" {
  weight %a: f16[2, 3] = random(1)
  weight %b: f16[1, 3] = random(2)
  weight %g: f32[3] = [1.0, 2.0, 3.0]
  weight %c: f16[3] = [1.0, 2.0, 3.0]
  weight %d: f16[2] = [1.0, 2.0]
  %h = Cast(%g) {to: "f16"}
  %both = Concat(%a, %b) {axis: 0}
  %scaled = Mul(%both, %h)
  %times = MatMul(%both, %h)
  %moved = Add(%c, %c)
  %less = Neg(%times)
  %sum = Add(%moved, %c)
  %beside = Concat(%a, %a) {axis: 1}
  %twice = Mul(%scaled, %h)
  %uneven = Concat(%d, %c) {axis: 0}
  %other = Concat(%c, %d) {axis: 0}
  %wrong = Add(%uneven, %other)
  weight %i: i64[3] = [1, 2, 3]
  %count = Add(%i, %i)
  %minus = Neg(%c)
  %same = Neg(%minus)
  output "count" %count
  output "same" %same
  output "scaled" %scaled
  output "less" %less
  output "sum" %sum
  output "beside" %beside
  output "twice" %twice
  output "wrong" %wrong
}"#,
        )
        .expect("a graph");
        as_inputs(&mut graph).expect("a patch");
        insta::assert_snapshot!(print(&graph));
    }

    #[test]
    fn columns_by_a_share_of_their_head_are_an_input() {
        let mut graph = parse(
            r#"graph "g" {
  weight %w: f16[2, 6] = random(1)
  weight %s: f32[3] = [1.0, 2.0, 3.0]
  output "w" %w
  output "s" %s
}"#,
        )
        .expect("a graph");
        let change = {
            let mut p = Patch::new(&graph, "test");
            let [w, s] = ["w", "s"].map(|name| graph.find_value(name).expect("a weight"));
            let sides = [(2, false), (2, true)].map(|(each, is_rest)| {
                let share = shares(&mut p, s, each, is_rest);
                let share = p.cast(share, DType::F16);
                p.mul(w, share)
            });
            let both = p.concat(&sides, 1);
            p.output("both", both);
            p.finish()
        };
        graph.apply(change).expect("a patch");
        as_inputs(&mut graph).expect("a patch");
        insta::assert_snapshot!(print(&graph));
    }

    #[test]
    fn joins_of_weights_become_inputs_and_other_values_stay() {
        let mut graph = parse(
            r#"graph "g" {
  input %x: f32[batch, 2]
  weight %a: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  weight %b: f32[1, 2] = [1.0, 2.0]
  %both = Concat(%a, %b) {axis: 0}
  %y = Concat(%x, %b) {axis: 0}
  output "both" %both
  output "y" %y
}"#,
        )
        .expect("a graph");
        let change = {
            let mut p = Patch::new(&graph, "test");
            let a = graph.find_value("a").expect("a weight");
            let [odd, even] =
                [1, 0].map(|begin| rows(&mut p, a, RowRange { begin, end: begin + 1, every: 2 }));
            let transposed = p.concat(&[odd, even], 0);
            p.output("transposed", transposed);
            p.finish()
        };
        graph.apply(change).expect("a patch");
        as_inputs(&mut graph).expect("a patch");
        insta::assert_snapshot!(print(&graph));
    }
}
