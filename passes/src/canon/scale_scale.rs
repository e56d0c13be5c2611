//! Matches: `Mul` or `Div` by a constant, of a `Mul` or `Div` by a constant
//! Becomes: one `Mul`
//! Exact: up to rounding (the constants are multiplied in f64 and rounded once)

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use dijiang_format::dtype::DType;

pub(super) struct ScaleScale;

impl GraphRule for ScaleScale {
    fn name(&self) -> &'static str {
        "scale_scale"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let (middle, outer) = scaled(w.graph, node)?;
            let (inner_node, _) = w.graph.producer(middle).filter(|_| w.is_untouched(middle))?;
            let (x, inner) = scaled(w.graph, w.graph.node(inner_node))?;
            let x = w.current(x);
            Some(vec![w.patch.mul_scalar(x, inner * outer)])
        })
    }
}

/// What a node scales, and by how much: `Mul` by a constant on either side, or `Div` by one.
pub(super) fn scaled(graph: &Graph, node: &Node) -> Option<(ValueId, f64)> {
    if !node.op.is("Mul") && !node.op.is("Div") {
        return None;
    }
    let (a, b) = (node.input(0)?, node.input(1)?);
    let number = |v: ValueId| {
        let small = !graph.value(v).is_weight && graph.value(v).ty.dtype.is_some_and(DType::is_float);
        graph.as_scalar(v).filter(|x| small && x.is_finite() && *x != 0.0)
    };
    let rank = |v: ValueId| graph.value(v).ty.rank();
    let narrow = |c: ValueId, x: ValueId| (rank(c)? <= rank(x)?).then_some(());
    if let Some(c) = number(b) {
        narrow(b, a)?;
        return Some((a, if node.op.is("Div") { c.recip() } else { c }));
    }
    narrow(a, b)?;
    number(a).filter(|_| node.op.is("Mul")).map(|c| (b, c))
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn constant_factors_join() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[n]
  const %a: f32[] = [2.0]
  const %b: f32[1] = [8.0]
  weight %w: f32[] = [3.0]
  %p = Mul(%a, %x)
  %q = Div(%p, %b)
  %r = Div(%a, %x)
  %s = Mul(%r, %b)
  %t = Mul(%x, %w)
  %u = Mul(%t, %b)
  output "joined" %q
  output "reciprocal" %s
  output "a weight" %u
}"#
        ));
    }
}
