//! Matches: `Min` of a number and a dim d of a graph input, where a value with a dim that long is added
//! to, or multiplied with, one of dim d
//! Becomes: d
//! Exact: yes, wherever the model runs: where the number is smaller, neither dim is 1 and they differ
//! Declines when: nothing demands that the two are equal, as for a window of keys

use super::terms::{Term, Terms};
use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::{Dim, Shape};

pub(super) struct BoundedDim;

impl GraphRule for BoundedDim {
    fn name(&self) -> &'static str {
        "bounded_dim"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let (dim, bounded, from) = bounded(&terms, node)?;
            let same_type = w.graph.value(from).ty.rank() == w.graph.value(node.outputs[0]).ty.rank();
            (same_type && are_equal(w.graph, &dim, &bounded)).then(|| vec![w.current(from)])
        })
    }
}

/// The dim, the dim that is no larger than a number, and the value of the first.
fn bounded(terms: &Terms, node: &Node) -> Option<(Dim, Dim, ValueId)> {
    let [Some(a), Some(b)] = node.inputs.as_slice() else { return None };
    if !node.op.is("Min") {
        return None;
    }
    let (dim, number, from) = match (terms.get(*a)?, terms.get(*b)?) {
        ([Term::Dim(d)], [Term::Int(n)]) => (d, n, a),
        ([Term::Int(n)], [Term::Dim(d)]) => (d, n, b),
        _ => return None,
    };
    let number = Dim::Known(u64::try_from(*number).ok().filter(|n| *n > 1)?);
    Some((dim.clone(), dim.least(&number), *from))
}

/// Whether some node fails unless the two are equal.
fn are_equal(graph: &Graph, dim: &Dim, bounded: &Dim) -> bool {
    let meet = |a: &Shape, b: &Shape| {
        let mut pairs = a.iter().rev().zip(b.iter().rev());
        pairs.any(|(a, b)| (a, b) == (dim, bounded) || (a, b) == (bounded, dim))
    };
    graph.nodes().any(|(_, node)| {
        let shape = |slot: usize| graph.value(node.input(slot)?).ty.shape.as_ref();
        (node.op.is("Add") || node.op.is("Mul")) && shape(0).zip(shape(1)).is_some_and(|(a, b)| meet(a, b))
    })
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const CUT: &str = r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %x: f32[batch, time, 8]
  input %rows: f32[rows, 8]
  const %most: i64[1] = [128]
  const %width: i64[1] = [8]
  %b = Shape(%input_ids) {start: 0, end: 1}
  %t = Shape(%input_ids) {start: 1, end: 2}
  %n = Min(%most, %t)
  %to = Concat(%b, %n, %width) {axis: 0}
  %y = Reshape(%rows, %to)
  %z = Add(%y, %x)
  output "z" %z
}"#;

    #[test]
    fn a_table_that_is_long_enough_does_not_bound() {
        insta::assert_snapshot!(after(CUT));
    }

    #[test]
    fn a_window_stays() {
        let window = after(&CUT.replace("Add(%y, %x)", "Exp(%y)"));
        assert!(window.contains("Min(") && window.contains("min(128, time)"), "{window}");
    }

    #[test]
    fn one_row_for_all_stays() {
        assert!(after(&CUT.replace("[128]", "[1]")).contains("Min("));
    }
}
