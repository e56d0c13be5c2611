//! Matches: exp(x - max x) / Σ exp(x - max x) along one axis, as exporters write it that have no `Softmax`
//! Becomes: `Softmax`
//! Exact: yes, up to rounding
//! Declines when: the largest number and the sum are taken along different axes, or several

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct WrittenSoftmax;

impl GraphRule for WrittenSoftmax {
    fn name(&self) -> &'static str {
        "written_softmax"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let (x, axis) = softmax_of(w.graph, node)?;
            let x = w.current(x);
            Some(vec![w.patch.softmax(x, axis)])
        })
    }
}

/// What a quotient is the softmax of, and along which axis.
fn softmax_of(graph: &Graph, node: &Node) -> Option<(ValueId, i64)> {
    let is_quotient = node.op.is("Div") && node.op.domain().is_empty();
    let (above, below) = (node.input(0).filter(|_| is_quotient)?, node.input(1)?);
    let (summed, axis) = reduced(graph, below, "ReduceSum")?;
    let exponents = graph.made_by(above, "Exp").filter(|_| summed == above)?.input(0)?;
    let shifted = graph.made_by(exponents, "Sub")?;
    let x = shifted.input(0)?;
    (reduced(graph, shifted.input(1)?, "ReduceMax")? == (x, axis)).then_some((x, axis))
}

/// What is reduced along one axis that stays, and that axis, counted from the first.
fn reduced(graph: &Graph, value: ValueId, op: &str) -> Option<(ValueId, i64)> {
    let node = graph.made_by(value, op)?;
    let x = node.input(0)?;
    let [axis] = node.op.ints("axes")? else { return None };
    let axis = resolve_axis(*axis, graph.value(x).ty.rank()?).ok()?;
    (node.op.int("keepdims") != Some(0)).then_some((x, axis as i64))
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const TEXT: &str = r#"graph "g" {
  input %x: f32[batch, 4, time, keys]
  %most = ReduceMax(%x) {axes: [-1], keepdims: 1} "most"
  %less = Sub(%x, %most) "less"
  %exp = Exp(%less) "exp"
  %sum = ReduceSum(%exp) {axes: [3], keepdims: 1} "sum"
  %y = Div(%exp, %sum) "y"
  output "y" %y
}"#;

    #[test]
    fn a_softmax_that_is_written_out_is_one() {
        insta::assert_snapshot!(after(TEXT), @r#"
        graph "g" {
          input %x: f32[batch, 4, time, keys]
          %y/Softmax:0 = Softmax(%x) {axis: 3} "y/Softmax": f32[batch, 4, time, keys]
          output "y" %y/Softmax:0
        }
        "#);
    }

    #[test]
    fn sums_along_another_axis_are_none() {
        for (from, to) in
            [("axes: [3]", "axes: [2]"), ("axes: [-1]", "axes: [2]"), ("Div(%exp, %sum)", "Div(%less, %sum)")]
        {
            assert!(!after(&TEXT.replace(from, to)).contains("Softmax"), "{to}");
        }
    }
}
