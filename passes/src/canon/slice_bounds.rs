//! Matches: `Slice` along one axis by steps of 1 whose end is the dim of that axis, as a number or as it is computed, or a number
//! that stands for any end
//! Becomes: the `Slice` up to the end, written as the largest number
//! Exact: yes

use super::terms::{Term, Terms, dim_of};
use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node};
use crate::ir::infer::{is_open_end, resolve_axis};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::tensor::Tensor;

pub(super) struct SliceBounds;

impl GraphRule for SliceBounds {
    fn name(&self) -> &'static str {
        "slice_bounds"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let axis = reaches_the_end(w.graph, &terms, node)?;
            let (x, start) = (w.input(node, 0)?, w.input(node, 1)?);
            let end = w.patch.ints(&[i64::MAX]);
            Some(vec![w.patch.slice_to(x, axis, start, end)])
        })
    }
}

/// The one axis that is sliced, where the slice leaves nothing after its end.
fn reaches_the_end(graph: &Graph, terms: &Terms, node: &Node) -> Option<i64> {
    if !node.op.is("Slice") {
        return None;
    }
    let shape = graph.value(node.input(0)?).ty.shape.as_deref()?;
    let only = |slot: usize, absent: i64| match node.input(slot) {
        Some(v) => match graph.as_const(v).and_then(Tensor::to_i64)?.as_slice() {
            [one] => Some(*one),
            _ => None,
        },
        None => Some(absent),
    };
    let axis = resolve_axis(only(3, 0)?, shape.len()).ok()?;
    let [end] = terms.get(node.input(2)?)? else { return None };
    let whole = match (end, dim_of(graph, node.input(0)?, axis)) {
        (Term::Int(i64::MAX), _) => false,
        (Term::Int(end), _) if is_open_end(*end) => true,
        (Term::Int(end), Term::Int(dim)) => *end >= dim,
        (end @ (Term::Dim(_) | Term::DimOf(..)), dim) => *end == dim,
        _ => false,
    };
    (whole && only(4, 1)? == 1).then_some(axis as i64)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn an_end_that_is_the_dim_is_written_as_the_largest_number() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 8]
  const %from: i64[1] = [0]
  const %half: i64[1] = [4]
  const %last: i64[1] = [2]
  const %middle: i64[1] = [1]
  %t = Shape(%x) {start: 1, end: 2}
  %b = Shape(%x) {start: 0, end: 1}
  %y = Slice(%x, %from, %t, %middle)
  %z = Slice(%x, %half, %t, %middle)
  %w = Slice(%x, %from, %half, %last)
  %v = Slice(%x, %from, %b, %middle)
  const %billion: i64[1] = [1000000000]
  %u = Slice(%x, %half, %billion, %middle)
  output "everything" %y
  output "the end" %z
  output "a part" %w
  output "another dim" %v
  output "any end" %u
}"#
        ));
    }
}
