//! Matches: shape arithmetic whose elements are all numbers, and a single element that is a dim of a
//! graph input
//! Becomes: a constant; `Shape` of that input
//! Exact: yes (two dims of one symbol are equal)

use super::terms::{Term, Terms};
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

pub(super) struct ShapeValues;

/// For every symbol the first graph input with such a dim, and the axis.
type Sources = BTreeMap<Dim, (ValueId, i64)>;

impl GraphRule for ShapeValues {
    fn name(&self) -> &'static str {
        "shape_values"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        let sources = sources(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let value = node.outputs[0];
            if node.outputs.len() != 1 {
                return None;
            }
            if let Some(ints) = terms.ints(value) {
                return number(w, value, &ints);
            }
            match terms.get(value)? {
                [Term::Dim(dim)] => input_dim(w, node, *sources.get(dim)?),
                _ => None,
            }
        })
    }
}

fn sources(graph: &Graph) -> Sources {
    let mut found = Sources::new();
    for input in graph.inputs() {
        for (axis, dim) in (0..).zip(graph.value(*input).ty.shape.iter().flatten()) {
            if matches!(dim, Dim::Sym(_)) {
                found.entry(dim.clone()).or_insert((*input, axis));
            }
        }
    }
    found
}

fn number(w: &mut Sweep<'_>, value: ValueId, ints: &[i64]) -> Option<Vec<ValueId>> {
    let ty = w.graph.value(value).ty.clone();
    let dims = if ty.rank()? == 0 { Vec::new() } else { vec![ints.len() as u64] };
    let dtype = ty.dtype?;
    if dtype == DType::I64 {
        return Some(vec![w.patch.constant("shape", Tensor::from_i64(&dims, ints))]);
    }
    let bytes = ints.iter().flat_map(|n| Tensor::scalar(dtype, *n as f64).bytes().into_owned()).collect();
    let tensor = Tensor::from_bytes(dtype, dims, bytes).ok()?;
    Some(vec![w.patch.constant("shape", tensor)])
}

/// `Shape` of an input, cut to one dim, with a `Squeeze` where the element has rank 0.
fn input_dim(w: &mut Sweep<'_>, node: &Node, (input, axis): (ValueId, i64)) -> Option<Vec<ValueId>> {
    let ty = &w.graph.value(node.outputs[0]).ty;
    let scalar = ty.rank()? == 0;
    if ty.dtype != Some(DType::I64) || is_input_dim(w.graph, node, scalar, input, axis) {
        return None;
    }
    let op = Op::new("Shape").with("start", axis).with("end", axis + 1);
    let dim = w.patch.node(op, &[input]);
    Some(vec![if scalar { w.patch.squeeze(dim, &[0]) } else { dim }])
}

fn is_input_dim(graph: &Graph, node: &Node, scalar: bool, input: ValueId, axis: i64) -> bool {
    let shape = match scalar {
        true if node.op.is("Squeeze") => node.input(0).and_then(|v| graph.made_by(v, "Shape")),
        true => None,
        false => Some(node).filter(|n| n.op.is("Shape")),
    };
    shape.is_some_and(|n| {
        n.input(0) == Some(input) && n.op.int("start") == Some(axis) && n.op.int("end") == Some(axis + 1)
    })
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn chains_of_shapes_become_numbers_or_dims_of_inputs() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 8]
  input %y: f32[other, 3]
  const %zero: i64[] = [0]
  const %two: i64[] = [2]
  const %minus: i64[1] = [-1]
  const %ones: i64[2] = [1, 1]
  %e = Exp(%x)
  %s = Shape(%e)
  %b = Gather(%s, %zero)
  %w = Gather(%s, %two)
  %f = Cast(%w) {to: "f32"}
  %r = Sqrt(%f)
  %q = Div(%e, %r)
  %u = Unsqueeze(%b) {axes: [0]}
  %t = Concat(%u, %minus) {axis: 0}
  %m = Equal(%t, %minus)
  %k = Where(%m, %ones, %t)
  %z = ConstantOfShape(%k)
  %d = Range(%zero, %b, %two)
  %n = Mul(%b, %two)
  output "q" %q
  output "z" %z
  output "d" %d
  output "not a dim" %n
}"#
        ));
    }
}
