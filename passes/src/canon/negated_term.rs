//! Matches: `Add` of whole numbers and others times -1, or `Neg` of them
//! Becomes: `Sub`
//! Exact: yes, in whole numbers

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use dijiang_format::dtype::DType;

pub(super) struct NegatedTerm;

impl GraphRule for NegatedTerm {
    fn name(&self) -> &'static str {
        "negated_term"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let is_whole = |v: ValueId| w.graph.value(v).ty.dtype.is_some_and(DType::is_int);
            if !node.op.is("Add") || !is_whole(node.outputs[0]) {
                return None;
            }
            let (from, less) = [0, 1].into_iter().find_map(|slot| less(w, node, slot))?;
            Some(vec![w.patch.node(Op::new("Sub"), &[from, less])])
        })
    }
}

/// What an input is taken from, where it is the negative of something, and that.
fn less(w: &Sweep<'_>, node: &Node, slot: usize) -> Option<(ValueId, ValueId)> {
    let term = node.input(slot).filter(|v| w.is_untouched(*v))?;
    let inside = match w.graph.made_by(term, "Mul") {
        Some(product) => {
            let is_minus = |at: &usize| product.input(*at).is_some_and(|v| is_minus_one(w, v));
            product.input(1 - [0, 1].into_iter().find(is_minus)?)?
        }
        None => w.graph.made_by(term, "Neg")?.input(0)?,
    };
    // One number for all is spread no further than the term was.
    let rank = |v: ValueId| w.graph.value(v).ty.rank();
    (rank(inside) == rank(term)).then_some((w.input(node, 1 - slot)?, w.current(inside)))
}

fn is_minus_one(w: &Sweep<'_>, value: ValueId) -> bool {
    w.graph.as_scalar(value) == Some(-1.0)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn a_sum_with_what_is_negative_is_a_difference() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %n: i64[]
  input %m: i64[]
  input %x: f32[]
  const %minus: i64[] = [-1]
  const %two: i64[] = [2]
  const %less: f32[] = [-1.0]
  %a = Mul(%minus, %m)
  %b = Add(%a, %n)
  %c = Neg(%m)
  %d = Add(%n, %c)
  %e = Mul(%two, %m)
  %f = Add(%e, %n)
  %g = Mul(%x, %less)
  %h = Add(%g, %x)
  output "a product" %b
  output "a negative" %d
  output "twice" %f
  output "no whole number" %h
}"#
        ));
    }
}
