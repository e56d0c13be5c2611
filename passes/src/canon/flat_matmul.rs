//! Matches: a weight applied to tokens that were laid out in one row: `MatMul(Reshape(x, [-1, k]), w)`, of their heads too,
//! and `Add` of a bias after that; the same of whole numbers, `DynamicQuantizeLinear` and `MatMulInteger`, with the `Cast` and
//! the `Mul` by their scales
//! Becomes: the same over `[batch, time, k]`, with the `Reshape` after it
//! Exact: yes

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct FlatMatMul;

impl GraphRule for FlatMatMul {
    fn name(&self) -> &'static str {
        "flat_matmul"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.name() {
            _ if !node.op.domain().is_empty() => None,
            "MatMul" | "MatMulInteger" => product(w, node),
            "Add" | "Mul" => [0, 1].into_iter().find_map(|slot| row(w, node, slot)),
            "DynamicQuantizeLinear" => rounded(w, node),
            "Cast" => cast(w, node),
            _ => None,
        })
    }
}

fn shape(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    graph.value(value).ty.shape.as_deref()
}

/// x in `Reshape(x, [-1, k])`, where x is `[.., .., k]`.
fn tokens(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let x = graph.made_by(value, "Reshape")?.input(0)?;
    let (from, to) = (shape(graph, x)?, shape(graph, value)?);
    let width = to.last()?.known().filter(|n| *n > 0)?;
    (from.len() == 3 && to.len() == 2 && from[2].known() == Some(width)).then_some(x)
}

/// `[.., .., heads · dim]` of x in `Reshape(x, [-1, heads · dim])`, where x is `[.., .., heads, dim]`.
fn joined_heads(w: &mut Sweep<'_>, value: ValueId) -> Option<ValueId> {
    let x = w.graph.made_by(value, "Reshape")?.input(0)?;
    let (from, to) = (shape(w.graph, x)?, shape(w.graph, value)?);
    let ([_, _, heads, dim], [_, width]) = (from, to) else { return None };
    let width = width.known().filter(|n| *n > 0)?;
    (heads.known()?.checked_mul(dim.known()?) == Some(width)).then_some(())?;
    let x = w.current(x);
    Some(w.patch.reshape(x, &[0, 0, width as i64]))
}

fn product(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let (flat, weight) = (node.input(0)?, node.input(1)?);
    w.is_untouched(flat).then_some(())?;
    let x = tokens(w.graph, flat).map(|x| w.current(x)).or_else(|| joined_heads(w, flat))?;
    let width = shape(w.graph, weight).filter(|s| s.len() == 2)?[1].known()?;
    // A zero point for each row of the tokens is for rows of a matrix.
    if node.input(2).is_some_and(|zero| !is_one_number(w.graph, zero)) {
        return None;
    }
    let mut inputs: Vec<Option<ValueId>> = (0..node.inputs.len()).map(|slot| w.input(node, slot)).collect();
    inputs[0] = Some(x);
    let y = w.patch.node_outputs(node.op.clone(), &inputs, 1)[0];
    Some(vec![w.patch.reshape(y, &[-1, width as i64])])
}

fn is_one_number(graph: &Graph, value: ValueId) -> bool {
    matches!(shape(graph, value), Some([] | [Dim::Known(1)]))
}

/// `Add` and `Mul` of a row of numbers to every token; `Mul` of one number too.
fn row(w: &mut Sweep<'_>, node: &Node, slot: usize) -> Option<Vec<ValueId>> {
    let (flat, other) = (node.input(slot)?, node.input(1 - slot)?);
    let x = tokens(w.graph, flat).filter(|_| w.is_untouched(flat))?;
    let width = shape(w.graph, x)?[2].known()?;
    let is_row = matches!(shape(w.graph, other)?, [Dim::Known(own)] if *own == width);
    let is_known = is_row || node.op.is("Mul") && is_one_number(w.graph, other);
    is_known.then_some(())?;
    let (x, other) = (w.current(x), w.current(other));
    let y = w.patch.node(node.op.clone(), &[x, other]);
    Some(vec![w.patch.reshape(y, &[-1, width as i64])])
}

/// One scale goes for all tokens, however they lie.
fn rounded(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let flat = node.input(0)?;
    let x = tokens(w.graph, flat).filter(|_| w.is_untouched(flat))?;
    let width = shape(w.graph, x)?[2].known()?;
    let x = w.current(x);
    let mut outputs = w.patch.node_outputs(node.op.clone(), &[Some(x)], 3);
    outputs[0] = w.patch.reshape(outputs[0], &[-1, width as i64]);
    Some(outputs)
}

/// Of the sums of whole numbers.
fn cast(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let flat = node.input(0)?;
    let x = tokens(w.graph, flat).filter(|_| w.is_untouched(flat))?;
    w.graph.made_by(x, "MatMulInteger")?;
    let width = shape(w.graph, x)?[2].known()?;
    let x = w.current(x);
    let y = w.patch.node(node.op.clone(), &[x]);
    Some(vec![w.patch.reshape(y, &[-1, width as i64])])
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_exact};

    #[test]
    fn projections_keep_batch_and_time_apart() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: f32[4, 6] = random(1)
  weight %b: f32[6] = random(2)
  const %rows: i64[2] = [-1, 4]
  const %pairs: i64[2] = [-1, 2]
  const %six: i64[1] = [6]
  weight %u: f32[2, 6] = random(3)
  %s = Shape(%x) {start: 0, end: 2}
  %to = Concat(%s, %six) {axis: 0}
  %r = Reshape(%x, %rows)
  %y = Gemm(%r, %w, %b)
  %z = Reshape(%y, %to)
  %p = Reshape(%x, %pairs)
  %q = MatMul(%p, %u)
  output "z" %z
  output "rows are cut up" %q
}"#
        ));
    }

    #[test]
    fn heads_of_tokens_keep_batch_and_time_apart() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 2, 4]
  weight %w: f32[8, 6] = random(1)
  const %rows: i64[2] = [-1, 8]
  %r = Reshape(%x, %rows)
  %y = MatMul(%r, %w)
  output "y" %y
}"#;
        assert!(after(text).contains("f32[batch, time, 6]"), "{}", after(text));
        check_exact(text, &[("x", &[2, 3, 2, 4])]);
        let apart = after(&text.replace("[-1, 8]", "[-1, 4]").replace("f32[8, 6]", "f32[4, 6]"));
        assert!(!apart.contains("f32[batch, time, 6]"), "{apart}");
    }

    /// As dynamic quantisation leaves the products of GPT-2.
    #[test]
    fn whole_numbers_keep_batch_and_time_apart() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: i8[4, 6] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6]
  const %z: i8[] = [1]
  const %s: f32[] = [0.5]
  weight %b: f32[6] = random(2)
  const %rows: i64[2] = [-1, 4]
  const %six: i64[1] = [6]
  %size = Shape(%x) {start: 0, end: 2}
  %to = Concat(%size, %six) {axis: 0}
  %r = Reshape(%x, %rows)
  %q, %scale, %zero = DynamicQuantizeLinear(%r)
  %scales = Mul(%scale, %s)
  %sums = MatMulInteger(%q, %w, %zero, %z)
  %floats = Cast(%sums) {to: "f32"}
  %product = Mul(%floats, %scales)
  %biased = Add(%product, %b)
  %y = Reshape(%biased, %to)
  output "y" %y
}"#;
        insta::assert_snapshot!(after(text));
        check_exact(text, &[("x", &[2, 3, 4])]);
        let by_row = text
            .replace("  %size =", "  input %zeros: u8[rows]\n  %size =")
            .replace("%w, %zero, %z)", "%w, %zeros, %z)");
        assert!(after(&by_row).contains("i32[?, 6]"), "{}", after(&by_row));
    }
}
