//! Matches: `Expand` to a computed shape, each dim a number or the input's dim in the same place
//! Becomes: `Expand` to a constant shape, with 1 for the dims that stay
//! Exact: yes

use super::terms::{Term, Terms, dim_of};
use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct ExpandTarget;

impl GraphRule for ExpandTarget {
    fn name(&self) -> &'static str {
        "expand_target"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let target = constant_target(w.graph, &terms, node)?;
            let x = w.input(node, 0)?;
            let target = w.patch.ints(&target);
            Some(vec![w.patch.expand(x, target)])
        })
    }
}

fn constant_target(graph: &Graph, terms: &Terms, node: &Node) -> Option<Vec<i64>> {
    if !node.op.is("Expand") {
        return None;
    }
    let (x, shape) = (node.input(0)?, node.input(1)?);
    let from = graph.value(x).ty.shape.as_deref()?;
    let target = terms.get(shape)?;
    let entry = |(i, term): (usize, &Term)| {
        let own = (i + from.len()).checked_sub(target.len()).map(|at| dim_of(graph, x, at));
        match term {
            Term::Unknown => None,
            same if own.as_ref() == Some(same) => Some(1),
            Term::Int(n) => Some(*n),
            Term::Dim(_) | Term::DimOf(..) => None,
        }
    };
    let new: Vec<i64> = target.iter().enumerate().map(entry).collect::<Option<_>>()?;
    let old = graph.as_const(shape).and_then(crate::ir::tensor::Tensor::to_i64);
    (old.as_ref() != Some(&new)).then_some(new)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn dims_that_stay_are_written_one() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, 2, 1, time, 8]
  input %y: f32[1, 8]
  const %three: i64[1] = [3]
  %head = Shape(%x) {start: 0, end: 2}
  %tail = Shape(%x) {start: 3}
  %to = Concat(%head, %three, %tail) {axis: 0}
  %z = Expand(%x, %to)
  %w = Expand(%y, %tail)
  output "repeated" %z
  output "grows by a symbol" %w
}"#
        ));
    }
}
