//! Matches: `Gelu` of a value and a bias
//! Becomes: `BiasGelu`, so that the product before it has no bias to copy first
//! Exact: yes, up to rounding
//! Declines when: something else reads the sum, or half precision is bf16, for which there is no kernel

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use dijiang_format::dtype::DType;

pub(super) struct BiasGelu;

impl GraphRule for BiasGelu {
    fn name(&self) -> &'static str {
        "bias_gelu"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match (node.op.domain(), node.op.name()) {
            ("com.microsoft", "Gelu") => fused(w, node),
            _ => None,
        })
    }
}

fn fused(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let sum = node.input(0)?;
    let found = w.graph.value(sum);
    if found.uses.len() != 1 || !matches!(found.ty.dtype, Some(DType::F32 | DType::F16)) {
        return None;
    }
    let [x, bias] = biased(w.graph, sum)?;
    let (x, bias) = (w.current(x), w.current(bias));
    Some(vec![w.patch.node(Op::in_domain("com.microsoft", "BiasGelu"), &[x, bias])])
}

/// A value and the bias that is added to it: a weight as long as its last dim.
pub(super) fn biased(graph: &Graph, sum: ValueId) -> Option<[ValueId; 2]> {
    let add = graph.made_by(sum, "Add")?;
    let [x, bias] = [add.input(0)?, add.input(1)?];
    let shape = |value: ValueId| graph.value(value).ty.shape.as_ref();
    let [width] = &shape(bias)?[..] else { return None };
    let fits = graph.value(bias).is_weight && width.known().is_some() && shape(x)?.last() == Some(width);
    fits.then_some([x, bias])
}

#[cfg(test)]
mod tests {
    use super::BiasGelu;
    use crate::fuse::tests::after;

    #[test]
    fn only_a_bias_that_nothing_else_reads_is_part_of_it() {
        insta::assert_snapshot!(after(
            &BiasGelu,
            r#"graph "g" {
  input %x: f32[batch, 1, 3]
  input %z: f32[batch, 1, 3]
  weight %b: f32[3] = [1.0, -1.0, 0.5]
  %s = Add(%x, %b)
  %y = com.microsoft.Gelu(%s)
  output "y" %y
  %t = Add(%z, %b)
  %u = com.microsoft.Gelu(%t)
  %v = Add(%t, %u)
  output "read twice" %v
  %w = Add(%x, %z)
  %a = com.microsoft.Gelu(%w)
  output "no bias" %a
}"#,
            &[("x", &[2, 1, 3]), ("z", &[2, 1, 3])],
        ));
    }
}
