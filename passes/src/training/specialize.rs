//! A model for training: so many rows of so many tokens, no past, no padding, its parameters as inputs.
//!
//! What begins with an empty past is left out by carrying along which values are all zeros or all ones.

use super::TrainingError;
use super::parameters::{Group, Parameter, ParameterLayout, Precision};
use crate::canon::canonicalize;
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::Patch;
use crate::ir::rebuild::{Rebuild, copy_constant, copy_node, rebuild};
use crate::ir::shape::{Dim, Shape};
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names;
use std::collections::{BTreeMap, BTreeSet};

/// The tokens, i64 `[batch, sequence]`.
pub const TOKENS: &str = names::IDS;

/// Rows and tokens per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub batch: u64,
    pub sequence: u64,
}

/// A model with its parameters as inputs.
#[derive(Debug, Clone)]
pub struct Specialized {
    /// Inputs [`TOKENS`] and the parameters; the model's own outputs that were asked for.
    pub graph: Graph,
    /// Names of the parameters' inputs, in the order of the layout.
    pub parameters: Vec<String>,
}

/// Writes `model` for training. Its outputs are those that `keeps` names.
pub fn specialize(
    model: &Graph,
    layout: &ParameterLayout,
    size: Size,
    precision: Precision,
    keeps: &dyn Fn(&str) -> bool,
) -> Result<Specialized, TrainingError> {
    for input in model.inputs() {
        let value = model.value(*input);
        if kind(&value.name).is_none() {
            return Err(TrainingError::Input { name: value.name.clone(), ty: value.ty.to_string() });
        }
    }
    let mut how = Specialize {
        layout,
        size,
        precision,
        keeps,
        pieces: BTreeMap::new(),
        zeros: BTreeSet::new(),
        ones: BTreeSet::new(),
    };
    let mut graph = rebuild(model, "specialize", &mut how)?;
    canonicalize(&mut graph)?;
    Ok(Specialized { graph, parameters: layout.parameters().map(Parameter::input).collect() })
}

impl Specialized {
    /// The parameters, in the order of the layout; gradients are taken to these.
    pub fn inputs(&self) -> Vec<ValueId> {
        let by_name: BTreeMap<&str, ValueId> =
            self.graph.inputs().iter().map(|id| (self.graph.value(*id).name.as_str(), *id)).collect();
        self.parameters.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect()
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Tokens,
    Mask,
    Positions,
    /// All zeros: a past that is not there, or token types.
    Zeros,
    /// An input that stays one.
    Given,
}

fn kind(name: &str) -> Option<Kind> {
    match name {
        names::IDS => Some(Kind::Tokens),
        names::MASK => Some(Kind::Mask),
        names::POSITIONS => Some(Kind::Positions),
        names::WINDOWS | names::KEPT | names::BRANCHES => Some(Kind::Given),
        names::SEGMENTS => Some(Kind::Zeros),
        past if past.starts_with("past") => Some(Kind::Zeros),
        _ => None,
    }
}

struct Specialize<'a> {
    layout: &'a ParameterLayout,
    size: Size,
    precision: Precision,
    keeps: &'a dyn Fn(&str) -> bool,
    /// Each parameter as f32.
    pieces: BTreeMap<String, ValueId>,
    zeros: BTreeSet<ValueId>,
    ones: BTreeSet<ValueId>,
}

impl Specialize<'_> {
    fn read(&mut self, p: &mut Patch<'_>, group: &Group) {
        for parameter in &group.parameters {
            let dims: Vec<Dim> = parameter.dims.iter().map(|d| Dim::Known(*d)).collect();
            let read = p.input(&parameter.input(), self.precision.of_group(group), dims);
            let wide = p.cast(read, DType::F32);
            self.pieces.insert(parameter.name.clone(), wide);
        }
    }

    fn dims(&self, shape: Option<&Shape>) -> Vec<u64> {
        let sizes = shape.into_iter().flatten().enumerate().map(|(axis, dim)| match (axis, dim) {
            (0, _) => self.size.batch,
            (_, Dim::Known(n)) => *n,
            // The length of the past.
            (_, Dim::Sym(_) | Dim::Unknown) => 0,
        });
        sizes.collect()
    }

    /// The value that a node passes on because the others are neutral.
    fn neutral(
        &self,
        p: &Patch<'_>,
        node: &Node,
        inputs: &[Option<ValueId>],
        out: ValueId,
    ) -> Option<ValueId> {
        let [Some(a), Some(b)] = inputs else { return None };
        let same = |v: ValueId| {
            p.ty(v) == p.ty(out)
                && p.ty(v).shape.as_ref().is_some_and(|s| s.iter().all(|d| d.known().is_some()))
        };
        let (neutral, both) = match node.op.name() {
            "Add" => (&self.zeros, true),
            "Sub" => (&self.zeros, false),
            "Mul" => (&self.ones, true),
            "Div" => (&self.ones, false),
            _ => return None,
        };
        if neutral.contains(b) && same(*a) {
            return Some(*a);
        }
        (both && neutral.contains(a) && same(*b)).then_some(*b)
    }

    /// What is known of a node's outputs from its inputs.
    fn carry_along(&mut self, p: &Patch<'_>, node: &Node, inputs: &[Option<ValueId>], outputs: &[ValueId]) {
        const MOVES: [&str; 9] =
            ["Cast", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"];
        let has = |set: &BTreeSet<ValueId>, slot: usize| {
            inputs.get(slot).copied().flatten().is_some_and(|v| set.contains(&v))
        };
        let (first, second) = (has(&self.zeros, 0), has(&self.zeros, 1));
        let zero = match node.op.name() {
            name if MOVES.contains(&name) => first,
            "Neg" | "ReduceSum" => first,
            "MatMul" | "Mul" => first || second,
            "Add" | "Sub" => first && second,
            "Concat" => (0..inputs.len()).all(|slot| has(&self.zeros, slot)),
            _ => false,
        };
        let one = MOVES.contains(&node.op.name()) && has(&self.ones, 0);
        for out in outputs.iter().filter(|v| p.ty(**v).dtype.is_some_and(DType::is_float) || zero || one) {
            if zero {
                self.zeros.insert(*out);
            }
            if one {
                self.ones.insert(*out);
            }
        }
    }
}

impl Rebuild for Specialize<'_> {
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        p.set_scope("training");
        let value = graph.value(id);
        let Size { batch, sequence } = self.size;
        match kind(&value.name) {
            Some(Kind::Mask) => {
                let dtype = value.ty.dtype.unwrap_or(DType::I64);
                let ones =
                    Tensor::from_i64(&[batch, sequence], &vec![1; (batch * sequence) as usize]).cast(dtype);
                let mask = p.constant("mask", ones);
                self.ones.insert(mask);
                mask
            }
            Some(Kind::Positions) => {
                let row: Vec<i64> = (0..sequence as i64).collect();
                p.constant("positions", Tensor::from_i64(&[1, sequence], &row))
            }
            Some(Kind::Zeros) => {
                let dtype = value.ty.dtype.unwrap_or(DType::F32);
                let dims = match value.name.as_str() {
                    names::SEGMENTS => vec![batch, sequence],
                    _ => self.dims(value.ty.shape.as_ref()),
                };
                let len = dims.iter().product::<u64>() as usize;
                let zeros = p.constant("zeros", Tensor::from_i64(&dims, &vec![0; len]).cast(dtype));
                self.zeros.insert(zeros);
                zeros
            }
            Some(Kind::Given) => {
                let dtype = value.ty.dtype.unwrap_or(DType::F32);
                p.input(&value.name, dtype, value.ty.shape.clone().unwrap_or_default())
            }
            Some(Kind::Tokens) | None => {
                let tokens = p.input(TOKENS, DType::I64, vec![Dim::Known(batch), Dim::Known(sequence)]);
                let dtype = value.ty.dtype.unwrap_or(DType::I64);
                for group in self.layout.inputs() {
                    self.read(p, group);
                }
                p.cast(tokens, dtype)
            }
        }
    }

    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        match self.pieces.get(&graph.value(id).name) {
            Some(piece) => *piece,
            None => copy_constant(p, graph, id),
        }
    }

    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        // A stored f16 weight is cast where it is read; its piece is f32 already.
        if node.op.is("Cast")
            && let Some(x) = inputs[0]
            && p.ty(x).dtype.map(DType::name) == node.op.str("to")
        {
            return vec![x];
        }
        if node.op.is("Concat") {
            return concat(p, graph, node, inputs);
        }
        let outputs = copy_node(p, graph, node, inputs);
        let unmoved = unmoved(p, node, inputs[0], outputs[0]);
        if let Some(same) = unmoved.or_else(|| self.neutral(p, node, inputs, outputs[0])) {
            return vec![same];
        }
        self.carry_along(p, node, inputs, &outputs);
        outputs
    }

    fn keeps_output(&self, name: &str) -> bool {
        (self.keeps)(name)
    }
}

/// Rows that are brought together, which they are already, as a batch of training has no padding.
fn unmoved(p: &mut Patch<'_>, node: &Node, x: Option<ValueId>, out: ValueId) -> Option<ValueId> {
    if !node.op.is("Gather") || !names::is_together(&node.name) {
        return None;
    }
    let dims: Option<Vec<i64>> =
        p.ty(out).shape.as_ref()?.iter().map(|dim| dim.known().map(|n| n as i64)).collect();
    Some(p.reshape(x?, &dims?))
}

/// A join without the parts that are empty, such as a past of no tokens.
fn concat(p: &mut Patch<'_>, graph: &Graph, node: &Node, inputs: &[Option<ValueId>]) -> Vec<ValueId> {
    let is_empty = |v: &Option<ValueId>| {
        v.is_some_and(|v| p.ty(v).shape.as_ref().is_some_and(|s| s.contains(&Dim::Known(0))))
    };
    let rest: Vec<Option<ValueId>> = inputs.iter().filter(|v| !is_empty(v)).copied().collect();
    if rest.is_empty() {
        return copy_node(p, graph, node, inputs);
    }
    copy_node(p, graph, node, &rest)
}
