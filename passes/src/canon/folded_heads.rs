//! Matches: `MatMul`, `Add`, `Softmax` over the last axis, `Transpose` of the last two axes, and `Mul` and `Div` by a number, of
//! what a `Reshape` gave that folds the two leading axes of four into one: `[batch · heads, tokens, head_dim]`, as `torch.bmm`
//! is exported; `Transpose` that brings the tokens before that axis; `Add` of what is the same for all of it; and such a
//! `Reshape` to a computed shape of which less is known than of what it folds
//! Becomes: the same of what had four axes, with the `Reshape` after it; a `Reshape` that leaves the two last axes as they are
//! Exact: yes, where no axis is empty
//! Declines when: it is not known that a `Reshape` folds those axes and no others

use super::terms::{Term, Terms};
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct FoldedHeads;

impl GraphRule for FoldedHeads {
    fn name(&self) -> &'static str {
        "folded_heads"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let out = match node.op.name() {
                _ if !node.op.domain().is_empty() => return None,
                "Reshape" => return refolded(w, &terms, node),
                "MatMul" => alike(w, &terms, node)?,
                "Add" => alike(w, &terms, node).or_else(|| for_all(w, &terms, node))?,
                "Transpose" if node.op.ints("perm") == Some(&[1, 0, 2]) => {
                    return tokens_before(w, &terms, node);
                }
                "Softmax" => {
                    let x = unfolded(w, &terms, node.input(0)?)?;
                    matches!(node.op.int("axis"), Some(-1 | 2)).then(|| w.patch.softmax(x, -1))?
                }
                "Transpose" => {
                    let x = unfolded(w, &terms, node.input(0)?)?;
                    (node.op.ints("perm") == Some(&[0, 2, 1])).then(|| w.patch.transpose(x, &[0, 1, 3, 2]))?
                }
                "Mul" => scaled(w, &terms, node, [0, 1]).or_else(|| scaled(w, &terms, node, [1, 0]))?,
                "Div" => scaled(w, &terms, node, [0, 1])?,
                _ => return None,
            };
            Some(vec![folded(w, out)])
        })
    }
}

fn shape(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    graph.value(value).ty.shape.as_deref()
}

fn is_same(a: &Dim, b: &Dim) -> bool {
    a == b && *a != Dim::Unknown
}

/// What a value was before its two leading axes were folded into one.
fn unfolded(w: &mut Sweep<'_>, terms: &Terms, value: ValueId) -> Option<ValueId> {
    let graph = w.graph;
    let node = graph.made_by(value, "Reshape").filter(|_| w.is_untouched(value))?;
    let (x, target) = (node.input(0)?, node.input(1)?);
    let (from, to) = (shape(graph, x)?, shape(graph, value)?);
    match (from, to) {
        ([batch, heads, rows, columns], [_, folded_rows, folded_columns]) => {
            let keeps = |place: usize, dim: &Dim, folded: &Dim| {
                is_same(dim, folded) || is_told(terms, target, (place, dim))
            };
            // The third follows from any two: there are as many numbers before as after.
            let stays = [
                keeps(1, rows, folded_rows),
                keeps(2, columns, folded_columns),
                is_product(graph, terms, target, [batch, heads]),
            ];
            (stays.iter().filter(|stays| **stays).count() > 1).then(|| w.current(x))
        }
        // One row for all, which had no axis before.
        ([_, _, columns], [_, Dim::Known(1), folded_columns]) if is_same(columns, folded_columns) => {
            let x = w.current(x);
            Some(w.patch.unsqueeze(x, &[2]))
        }
        _ => None,
    }
}

/// A folded value with the dims of what it folds, where less was known of it.
fn refolded(w: &mut Sweep<'_>, terms: &Terms, node: &Node) -> Option<Vec<ValueId>> {
    let value = node.outputs[0];
    let is_known = |dims: &[Dim]| !dims.contains(&Dim::Unknown);
    shape(w.graph, value).filter(|dims| dims.len() == 3 && !is_known(&dims[1..]))?;
    let x = unfolded(w, terms, value)?;
    w.patch.ty(x).shape.as_deref().filter(|dims| dims.len() == 4 && is_known(&dims[2..]))?;
    Some(vec![folded(w, x)])
}

/// Whether a shape that is computed has a dim at a place.
fn is_told(terms: &Terms, shape: ValueId, (place, dim): (usize, &Dim)) -> bool {
    let told = terms.get(shape).and_then(|all| all.get(place));
    *dim != Dim::Unknown && told == Some(&Term::from(dim))
}

/// Operators that stand between a number and the shape that it is a part of.
const AROUND: [&str; 4] = ["Unsqueeze", "Squeeze", "Reshape", "Cast"];

/// Whether the first number of a shape is the product of two dims.
fn is_product(graph: &Graph, terms: &Terms, shape: ValueId, dims: [&Dim; 2]) -> bool {
    let mut first = graph.made_by(shape, "Concat").and_then(|node| node.input(0));
    while let Some(inner) = first.and_then(|v| AROUND.iter().find_map(|op| graph.made_by(v, op))) {
        first = inner.input(0);
    }
    let Some(product) = first.and_then(|v| graph.made_by(v, "Mul")) else { return false };
    let factor = |slot: usize| match terms.get(product.input(slot)?)? {
        [term] => Some(term.clone()),
        _ => None,
    };
    let [a, b] = dims.map(Term::from);
    let found = [factor(0), factor(1)];
    let is_known = ![&a, &b].contains(&&Term::Unknown);
    is_known && (found == [Some(a.clone()), Some(b.clone())] || found == [Some(b), Some(a)])
}

/// The product or the sum of two values that were folded alike.
fn alike(w: &mut Sweep<'_>, terms: &Terms, node: &Node) -> Option<ValueId> {
    let (a, b) = (unfolded(w, terms, node.input(0)?)?, unfolded(w, terms, node.input(1)?)?);
    let leading = |v: ValueId| w.patch.ty(v).shape.as_deref().map(|dims| dims[..2].to_vec());
    let (of_a, of_b) = (leading(a)?, leading(b)?);
    let is_alike = of_a.iter().zip(&of_b).all(|(a, b)| is_same(a, b));
    is_alike.then(|| w.patch.node(node.op.clone(), &[a, b]))
}

/// The sum of a value that was folded and one of the same three axes whose first is 1.
fn for_all(w: &mut Sweep<'_>, terms: &Terms, node: &Node) -> Option<ValueId> {
    [0, 1].into_iter().find_map(|slot| {
        let (x, other) = (node.input(slot)?, node.input(1 - slot)?);
        matches!(shape(w.graph, other)?, [Dim::Known(1), _, _]).then_some(())?;
        let x = unfolded(w, terms, x)?;
        let other = w.current(other);
        Some(w.patch.add(x, other))
    })
}

/// `[tokens, batch · heads, dim]` of `[batch, heads, tokens, dim]`.
fn tokens_before(w: &mut Sweep<'_>, terms: &Terms, node: &Node) -> Option<Vec<ValueId>> {
    let x = unfolded(w, terms, node.input(0)?)?;
    let dim = w.patch.dim(x, 3).known()?;
    let turned = w.patch.transpose(x, &[2, 0, 1, 3]);
    Some(vec![w.patch.reshape(turned, &[0, -1, dim as i64])])
}

/// A value that was folded, by the number in the other slot.
fn scaled(w: &mut Sweep<'_>, terms: &Terms, node: &Node, slots: [usize; 2]) -> Option<ValueId> {
    let [x, number] = slots.map(|slot| node.input(slot));
    let number = number.filter(|v| w.graph.as_scalar(*v).is_some())?;
    let x = unfolded(w, terms, x?)?;
    let mut inputs = [x, x];
    inputs[slots[1]] = w.current(number);
    Some(w.patch.node(node.op.clone(), &inputs))
}

/// `[batch · heads, rows, columns]`
fn folded(w: &mut Sweep<'_>, x: ValueId) -> ValueId {
    let [rows, columns] = [2, 3].map(|axis| w.patch.dim(x, axis).known());
    if let (Some(rows), Some(columns)) = (rows, columns) {
        return w.patch.reshape(x, &[-1, rows as i64, columns as i64]);
    }
    let (leading, last) = (w.patch.ints(&[-1]), w.patch.shape_of(x, 2, 4));
    let target = w.patch.concat(&[leading, last], 0);
    w.patch.reshape_to(x, target)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    /// As old decoders wrote it, with rows that are worked out from the rest.
    const TEXT: &str = r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %k: f32[batch, 4, keys, 8]
  input %v: f32[batch, 4, keys, 8]
  const %heads: i64[] = [4]
  const %rest: i64[1] = [-1]
  const %width: i64[1] = [8]
  const %by: f32[] = [0.5]
  %shape = Shape(%q) {start: 0, end: 1}
  %rows = Squeeze(%shape) {axes: [0]}
  %count = Mul(%rows, %heads)
  %first = Unsqueeze(%count) {axes: [0]}
  %to = Concat(%first, %rest, %width) {axis: 0}
  %fq = Reshape(%q, %to)
  %fk = Reshape(%k, %to)
  %fv = Reshape(%v, %to)
  %turned = Transpose(%fk) {perm: [0, 2, 1]} "turned"
  %scores = MatMul(%fq, %turned) "scores"
  %scaled = Mul(%by, %scores) "scaled"
  %weights = Softmax(%scaled) {axis: 2} "weights"
  %mixed = MatMul(%weights, %fv) "mixed"
  %sizes = Shape(%q)
  %y = Reshape(%mixed, %sizes)
  output "y" %y
}"#;

    #[test]
    fn heads_come_apart_again() {
        insta::assert_snapshot!(after(TEXT), @r#"
        graph "g" {
          input %q: f32[batch, 4, time, 8]
          input %k: f32[batch, 4, keys, 8]
          input %v: f32[batch, 4, keys, 8]
          %turned/Transpose:0 = Transpose(%k) {perm: [0, 1, 3, 2]} "turned/Transpose": f32[batch, 4, 8, keys]
          %scores/MatMul:0 = MatMul(%q, %turned/Transpose:0) "scores/MatMul": f32[batch, 4, time, keys]
          const %by: f32[] = [0.5]
          %scaled/Mul:0 = Mul(%by, %scores/MatMul:0) "scaled/Mul": f32[batch, 4, time, keys]
          %weights/Softmax:0 = Softmax(%scaled/Mul:0) {axis: -1} "weights/Softmax": f32[batch, 4, time, keys]
          %mixed/MatMul:0 = MatMul(%weights/Softmax:0, %v) "mixed/MatMul": f32[batch, 4, time, 8]
          output "y" %mixed/MatMul:0
        }
        "#);
    }

    #[test]
    fn a_size_that_is_read_off_folded_keys_is_that_of_the_keys() {
        let text = r#"graph "g" {
  input %k: f32[batch, 4, keys, 8]
  const %heads: i64[] = [4]
  const %one: i64[] = [1]
  const %rest: i64[1] = [-1]
  const %width: i64[1] = [8]
  %shape = Shape(%k) {start: 0, end: 1}
  %rows = Squeeze(%shape) {axes: [0]}
  %count = Mul(%rows, %heads)
  %first = Unsqueeze(%count) {axes: [0]}
  %to = Concat(%first, %rest, %width) {axis: 0}
  %fk = Reshape(%k, %to) "fk"
  %sizes = Shape(%fk)
  %length = Gather(%sizes, %one) "length"
  output "folded" %fk
  output "length" %length
}"#;
        insta::assert_snapshot!(after(text));
        // As many heads as a caller says, and a width that is not the keys'.
        let unknown = after(&text.replace("const %heads: i64[] = [4]", "input %heads: i64[]"));
        assert!(unknown.contains("Gather(%sizes"), "{unknown}");
        let wider = after(&text.replace("const %width: i64[1] = [8]", "const %width: i64[1] = [16]"));
        assert!(wider.contains("Gather(%sizes"), "{wider}");
    }

    #[test]
    fn a_bias_of_one_row_comes_apart_with_the_scores() {
        let text = r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %k: f32[batch, 4, 8, keys]
  input %slopes: f32[batch, 4, keys]
  const %flat: i64[3] = [-1, 1, 0]
  const %rest: i64[1] = [-1]
  %scores = MatMul(%q, %k) "scores"
  %sizes = Shape(%scores) {start: 2, end: 4}
  %to = Concat(%rest, %sizes) {axis: 0}
  %folded = Reshape(%scores, %to) "folded"
  %bias = Reshape(%slopes, %flat) "bias"
  %sum = Add(%folded, %bias) "sum"
  %all = Shape(%scores)
  %y = Reshape(%sum, %all)
  output "y" %y
}"#;
        insta::assert_snapshot!(after(text));
        let other = after(&text.replace("%slopes: f32[batch, 4, keys]", "%slopes: f32[others, 4, keys]"));
        assert!(other.contains("f32[?, time, keys]"), "{other}");
    }

    #[test]
    fn what_is_folded_otherwise_stays() {
        let folded = |from: &str, to: &str| {
            after(&TEXT.replace(from, to)).matches("f32[batch, 4, time, keys]").count()
        };
        assert_eq!(folded("", ""), 3);
        // Twice as many rows for half as many heads, as many heads as a caller says, and keys of other rows.
        assert_eq!(folded("const %heads: i64[] = [4]", "const %heads: i64[] = [2]"), 0);
        assert_eq!(folded("const %heads: i64[] = [4]", "input %heads: i64[]"), 0);
        assert_eq!(folded("input %k: f32[batch, 4, keys, 8]", "input %k: f32[others, 4, keys, 8]"), 0);
    }
}
