//! Matches: a node whose inputs are all small constants of the computation (weights are the model's,
//! and stay as they are)
//! Becomes: constants of what the interpreter computes
//! Exact: to the rounding of the element type, which is what a runtime would do

use super::{GraphRule, rewrite_nodes};
use crate::ir::eval::{Array, EvalContext};
use crate::ir::graph::{Graph, Node};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

pub(super) struct ConstantFold;

/// Most elements that go in or come out.
const MAX_ELEMENTS: usize = 4096;

/// Operators that give something else each time.
const RANDOM: &str = "Random";

impl GraphRule for ConstantFold {
    fn name(&self) -> &'static str {
        "constant_fold"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let tensors = fold(w.graph, node)?;
            Some(tensors.into_iter().map(|t| w.patch.constant("folded", t)).collect())
        })
    }
}

fn fold(graph: &Graph, node: &Node) -> Option<Vec<Tensor>> {
    let spec = node.op.spec().filter(|s| !s.name.starts_with(RANDOM))?;
    let small = |v| {
        let value = graph.value(v);
        value.as_const().filter(|t| !value.is_weight && t.len() <= MAX_ELEMENTS)
    };
    let inputs: Vec<Option<&Tensor>> =
        node.inputs.iter().map(|v| v.map_or(Some(None), |v| small(v).map(Some))).collect::<Option<_>>()?;
    let bounded = |v: &crate::ir::graph::ValueId| {
        let shape = graph.value(*v).ty.shape.as_ref()?;
        let len = shape.iter().try_fold(1u64, |n, d| n.checked_mul(d.known()?))?;
        (len <= MAX_ELEMENTS as u64).then_some(())
    };
    node.outputs.iter().map(bounded).collect::<Option<()>>()?;
    let arrays: Vec<Option<Array>> =
        inputs.iter().map(|t| t.map(Array::from_tensor).transpose()).collect::<Result<_, _>>().ok()?;
    let given: Vec<Option<&Array>> = arrays.iter().map(Option::as_ref).collect();
    let dtype = node.outputs.first().and_then(|v| graph.value(*v).ty.dtype);
    let ctx = EvalContext { op: &node.op, inputs: &given, outputs: node.outputs.len(), dtype };
    let results = (spec.eval)(&ctx).ok()?;
    let typed = node.outputs.iter().zip(&results);
    typed.map(|(v, array)| tensor(array, graph.value(*v).ty.dtype?)).collect()
}

fn tensor(array: &Array, dtype: DType) -> Option<Tensor> {
    let dims: Vec<u64> = array.shape().iter().map(|d| *d as u64).collect();
    if let (Array::I(a), DType::I64) = (array, dtype) {
        return Some(Tensor::from_i64(&dims, &a.iter().copied().collect::<Vec<_>>()));
    }
    let bytes = array.to_f64().iter().flat_map(|x| Tensor::scalar(dtype, *x).bytes().into_owned()).collect();
    Tensor::from_bytes(dtype, dims, bytes).ok()
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn small_constants_fold_and_weights_do_not() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[a, 2]
  const %d: i64[] = [64]
  weight %w: f32[2] = [4.0, 9.0]
  %f = Cast(%d) {to: "f32"}
  %s = Sqrt(%f)
  %y = Div(%x, %s)
  %r = Sqrt(%w)
  %z = Mul(%x, %r)
  output "folded" %y
  output "kept" %z
}"#
        ));
    }
}
