//! The oracle: a slow interpreter in f64 that shares no code with any runtime.
//!
//! Every float is an f64 whatever its declared type, so what it computes is the exact mathematics
//! of a graph up to f64 rounding; runtimes are measured against it.

use super::graph::{Def, Graph, NodeId, ValueId};
use super::op::Op;
use super::tensor::Tensor;
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, IxDyn};
use std::collections::{BTreeMap, BTreeSet};

/// A value while the interpreter runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    F(ArrayD<f64>),
    I(ArrayD<i64>),
    B(ArrayD<bool>),
}

impl Array {
    pub fn from_f64(dims: &[usize], values: Vec<f64>) -> Result<Self, String> {
        Ok(Self::F(shaped(dims, values)?))
    }

    pub fn from_i64(dims: &[usize], values: Vec<i64>) -> Result<Self, String> {
        Ok(Self::I(shaped(dims, values)?))
    }

    pub fn from_tensor(tensor: &Tensor) -> Result<Self, String> {
        let dims: Vec<usize> = tensor.dims().iter().map(|d| *d as usize).collect();
        Ok(match tensor.dtype() {
            d if d.is_float() => Self::F(shaped(&dims, tensor.to_f64())?),
            DType::Bool => {
                let flags = tensor.to_f64().iter().map(|x| *x != 0.0).collect();
                Self::B(shaped(&dims, flags)?)
            }
            _ => Self::I(shaped(&dims, tensor.to_i64().unwrap_or_default())?),
        })
    }

    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F(a) => a.shape(),
            Self::I(a) => a.shape(),
            Self::B(a) => a.shape(),
        }
    }

    pub fn as_f(&self) -> Result<&ArrayD<f64>, String> {
        match self {
            Self::F(a) => Ok(a),
            _ => Err("expected floats".to_owned()),
        }
    }

    pub fn as_i(&self) -> Result<&ArrayD<i64>, String> {
        match self {
            Self::I(a) => Ok(a),
            _ => Err("expected integers".to_owned()),
        }
    }

    pub fn as_b(&self) -> Result<&ArrayD<bool>, String> {
        match self {
            Self::B(a) => Ok(a),
            _ => Err("expected booleans".to_owned()),
        }
    }

    /// All elements in row-major order as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F(a) => a.iter().copied().collect(),
            Self::I(a) => a.iter().map(|x| *x as f64).collect(),
            Self::B(a) => a.iter().map(|x| f64::from(u8::from(*x))).collect(),
        }
    }

    /// Floats as an element type holds them, by way of f32; all else as it is.
    #[must_use]
    pub fn rounded(mut self, dtype: DType) -> Self {
        if let Self::F(array) = &mut self {
            let numbers: Vec<f32> = array.iter().map(|x| *x as f32).collect();
            let held = Tensor::from_f32(&[numbers.len() as u64], &numbers).cast(dtype).to_f64();
            array.iter_mut().zip(held).for_each(|(x, held)| *x = held);
        }
        self
    }
}

fn shaped<T>(dims: &[usize], values: Vec<T>) -> Result<ArrayD<T>, String> {
    let found = values.len();
    ArrayD::from_shape_vec(IxDyn(dims), values).map_err(|_| format!("{found} elements do not fill {dims:?}"))
}

/// What an operator's evaluation sees.
#[derive(Debug)]
pub struct EvalContext<'a> {
    pub op: &'a Op,
    /// `None` where an optional input is left out.
    pub inputs: &'a [Option<&'a Array>],
    pub outputs: usize,
    /// Of the first output, where it is known.
    pub dtype: Option<DType>,
}

impl<'a> EvalContext<'a> {
    pub fn has(&self, index: usize) -> bool {
        self.inputs.get(index).is_some_and(Option::is_some)
    }

    pub fn input(&self, index: usize) -> Result<&'a Array, String> {
        self.inputs.get(index).copied().flatten().ok_or_else(|| format!("input {index} is missing"))
    }

    pub fn f(&self, index: usize) -> Result<&'a ArrayD<f64>, String> {
        self.input(index)?.as_f().map_err(|e| format!("input {index}: {e}"))
    }

    pub fn i(&self, index: usize) -> Result<&'a ArrayD<i64>, String> {
        self.input(index)?.as_i().map_err(|e| format!("input {index}: {e}"))
    }

    pub fn ints(&self, index: usize) -> Result<Vec<i64>, String> {
        Ok(self.i(index)?.iter().copied().collect())
    }

    pub fn int_attr(&self, name: &str) -> Result<i64, String> {
        self.op.int(name).ok_or_else(|| format!("attribute `{name}` is missing"))
    }
}

/// A node could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("node `{node}` ({op}): {reason}")]
    Node { node: String, op: String, reason: String },
    #[error("input `{0}` was not given")]
    MissingInput(String),
    #[error("value `{value}`: {reason}")]
    Const { value: String, reason: String },
}

/// Evaluates `wanted` from values given for some inputs (or for any inner values, which then cut
/// the graph). Intermediate values are dropped as soon as their last user has run.
pub fn eval(
    graph: &Graph,
    given: &BTreeMap<ValueId, Array>,
    wanted: &[ValueId],
) -> Result<Vec<Array>, EvalError> {
    run(graph, given, wanted, |_, result| result)
}

/// The same with the arithmetic of half precision at its best: what a node gives as f16 or bf16 is rounded to that,
/// and worked out in f64.
pub fn eval_rounded(
    graph: &Graph,
    given: &BTreeMap<ValueId, Array>,
    wanted: &[ValueId],
) -> Result<Vec<Array>, EvalError> {
    run(graph, given, wanted, |value, result| match graph.value(value).ty.dtype {
        Some(dtype @ (DType::F16 | DType::BF16)) => result.rounded(dtype),
        _ => result,
    })
}

/// Evaluates, and passes on what `keep` makes of each result.
fn run(
    graph: &Graph,
    given: &BTreeMap<ValueId, Array>,
    wanted: &[ValueId],
    keep: impl Fn(ValueId, Array) -> Array,
) -> Result<Vec<Array>, EvalError> {
    let order = needed(graph, given, wanted);
    let mut uses_left: BTreeMap<ValueId, usize> = BTreeMap::new();
    for value in order.iter().flat_map(|n| graph.node(*n).inputs.iter().flatten()).chain(wanted) {
        *uses_left.entry(*value).or_default() += 1;
    }
    let mut live: BTreeMap<ValueId, Array> = BTreeMap::new();
    for node in order {
        let results = run_node(graph, node, given, &mut live)?;
        let outputs = &graph.node(node).outputs;
        live.extend(outputs.iter().zip(results).map(|(value, result)| (*value, keep(*value, result))));
        for value in graph.node(node).inputs.iter().flatten() {
            if let Some(left) = uses_left.get_mut(value) {
                *left -= 1;
                if *left == 0 {
                    live.remove(value);
                }
            }
        }
        live.retain(|value, _| uses_left.get(value).is_some_and(|n| *n > 0));
    }
    wanted
        .iter()
        .map(|value| {
            load(graph, *value, given, &mut live)?;
            given
                .get(value)
                .or_else(|| live.get(value))
                .cloned()
                .ok_or_else(|| EvalError::MissingInput(graph.value(*value).name.clone()))
        })
        .collect()
}

/// The nodes that `wanted` needs, producers first.
fn needed(graph: &Graph, given: &BTreeMap<ValueId, Array>, wanted: &[ValueId]) -> Vec<NodeId> {
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    // A node is put on the stack twice: to visit what it needs, and then to be listed itself.
    let mut stack: Vec<(NodeId, bool)> = Vec::new();
    let producer = |value: &ValueId| match graph.value(*value).def {
        Def::Output { node, .. } if !given.contains_key(value) => Some((node, false)),
        _ => None,
    };
    stack.extend(wanted.iter().rev().filter_map(producer));
    while let Some((node, visited)) = stack.pop() {
        if visited {
            order.push(node);
        } else if seen.insert(node) {
            stack.push((node, true));
            stack.extend(graph.node(node).inputs.iter().flatten().filter_map(producer));
        }
    }
    order
}

/// Makes sure that a constant is in `live`.
fn load(
    graph: &Graph,
    value: ValueId,
    given: &BTreeMap<ValueId, Array>,
    live: &mut BTreeMap<ValueId, Array>,
) -> Result<(), EvalError> {
    if given.contains_key(&value) || live.contains_key(&value) {
        return Ok(());
    }
    let name = || graph.value(value).name.clone();
    match &graph.value(value).def {
        Def::Const(tensor) => {
            let array =
                Array::from_tensor(tensor).map_err(|reason| EvalError::Const { value: name(), reason })?;
            live.insert(value, array);
            Ok(())
        }
        Def::Input | Def::Output { .. } => Err(EvalError::MissingInput(name())),
    }
}

fn run_node(
    graph: &Graph,
    id: NodeId,
    given: &BTreeMap<ValueId, Array>,
    live: &mut BTreeMap<ValueId, Array>,
) -> Result<Vec<Array>, EvalError> {
    let node = graph.node(id);
    for value in node.inputs.iter().flatten() {
        load(graph, *value, given, live)?;
    }
    let inputs: Vec<Option<&Array>> =
        node.inputs.iter().map(|v| v.and_then(|v| given.get(&v).or_else(|| live.get(&v)))).collect();
    let fail =
        |reason: String| EvalError::Node { node: node.name.clone(), op: node.op.qualified_name(), reason };
    let spec = node.op.spec().ok_or_else(|| fail("the operator is not known".to_owned()))?;
    let dtype = node.outputs.first().and_then(|v| graph.value(*v).ty.dtype);
    let ctx = EvalContext { op: &node.op, inputs: &inputs, outputs: node.outputs.len(), dtype };
    (spec.eval)(&ctx).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    #[test]
    fn what_is_half_precision_is_rounded_where_it_is_asked_for() {
        let graph = parse(
            r#"graph "g" {
  input %x: f16[2]
  const %one: f16[] = [1.0]
  %y = Add(%x, %one)
  %z = Add(%y, %one)
  %wide = Cast(%z) {to: "f32"}
  const %small: f32[] = [0.0009765625]
  %w = Add(%wide, %small)
  output "w" %w
}"#,
        )
        .expect("a graph");
        let x = Array::from_f64(&[2], vec![2048.0, 65504.0]).expect("it fits");
        let given = BTreeMap::from([(graph.inputs()[0], x)]);
        let wanted = [graph.outputs()[0].1];
        let numbers = |found: Result<Vec<Array>, EvalError>| found.expect("it is evaluated")[0].to_f64();
        // Numbers of f16 are 2 apart at 2048, and a tie goes to the even one; those of f32 are not rounded.
        let small = 1.0 / 1024.0;
        assert_eq!(numbers(eval(&graph, &given, &wanted)), [2050.0 + small, 65506.0 + small]);
        assert_eq!(numbers(eval_rounded(&graph, &given, &wanted)), [2048.0 + small, 65504.0 + small]);
    }
}
