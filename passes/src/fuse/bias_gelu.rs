//! Matches: `Gelu` of a value and a bias
//! Becomes: `BiasGelu`, so that the product before it has no bias to copy first
//! Exact: yes, up to rounding
//! Declines when: something else reads the sum, or half precision is bf16, for which there is no kernel

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::pattern::{Match, Pat, matches};
use crate::serving_graph::join_weights::is_stored;
use dijiang_format::dtype::DType;

pub(super) struct BiasGelu;

impl GraphRule for BiasGelu {
    fn name(&self) -> &'static str {
        "bias_gelu"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let gelu = Pat::op_in("com.microsoft", "Gelu", [sum().bind("sum")]);
        rewrite_matches(graph, self.name(), &gelu, fused)
    }
}

fn fused(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let dtype = w.graph.value(found.get("sum")?).ty.dtype;
    if !found.is_alone(w.graph) || !matches!(dtype, Some(DType::F32 | DType::F16)) {
        return None;
    }
    let [x, bias] = with_bias(w.graph, found)?;
    let (x, bias) = (w.current(x), w.current(bias));
    Some(vec![w.patch.node(Op::in_domain("com.microsoft", "BiasGelu"), &[x, bias])])
}

fn sum() -> Pat {
    Pat::op("Add", [Pat::var("x"), Pat::var("bias")])
}

/// A value and the bias that is added to it: what is stored, as long as its last dim.
pub(super) fn biased(graph: &Graph, value: ValueId) -> Option<[ValueId; 2]> {
    with_bias(graph, &matches(graph, &sum(), value)?)
}

fn with_bias(graph: &Graph, found: &Match) -> Option<[ValueId; 2]> {
    let [x, bias] = [found.get("x")?, found.get("bias")?];
    let shape = |value: ValueId| graph.value(value).ty.shape.as_ref();
    let [width] = &shape(bias)?[..] else { return None };
    let fits = is_stored(graph, bias) && width.known().is_some() && shape(x)?.last() == Some(width);
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
