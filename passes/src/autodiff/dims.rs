//! Names for every dim of a graph.
//!
//! Inference leaves a dim unknown where it cannot say what it is. For gradients it is enough to know
//! which dims are equal, so types are inferred anew with a name of its own for each unknown dim, and
//! for each computed integer that may become one.

use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::{InferContext, Type, infer, resolve_axis};
use crate::ir::shape::{Dim, Shape, Symbol};
use crate::ir::tensor::Tensor;
use std::collections::BTreeMap;

/// Where a symbolic dim can be read when the model runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// A dim of a graph input.
    Input { value: ValueId, axis: usize },
    /// An integer that the graph computes, of rank 0 or 1.
    Element { value: ValueId, rank: usize, index: usize },
}

#[derive(Debug, Default)]
pub(super) struct Dims {
    types: BTreeMap<ValueId, Type>,
    sources: BTreeMap<Symbol, Source>,
    /// Symbolic dims that the patch reads already, as `[1]` integers.
    pub(super) read: BTreeMap<Symbol, ValueId>,
}

/// What the names begin with that are given here.
pub(super) const OWN: &str = "#";

/// What computes the sizes that shapes are built of. Others, such as `Sub`, may go below zero, and a
/// negative number in a shape is no dim.
const SIZES: [&str; 5] = ["Add", "Div", "Max", "Min", "Mul"];

impl Dims {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut dims = Self::default();
        for (id, value) in graph.values() {
            match value.as_const() {
                Some(tensor) => dims.set(id, Type::of_const(tensor)),
                None => dims.set(id, value.ty.clone()),
            }
        }
        for input in graph.inputs() {
            dims.read_from_input(*input);
        }
        for id in graph.order() {
            dims.node(graph, graph.node(id));
        }
        dims
    }

    pub(super) fn shape(&self, value: ValueId) -> Option<&Shape> {
        self.types.get(&value)?.shape.as_ref()
    }

    /// The contents of an integer vector, as far as they are known.
    pub(super) fn ints(&self, value: ValueId) -> Option<&Vec<Dim>> {
        self.types.get(&value)?.ints.as_ref()
    }

    pub(super) fn source(&self, symbol: &Symbol) -> Option<Source> {
        self.sources.get(symbol).copied()
    }

    /// Keeps a type, its unknown dims named.
    fn set(&mut self, id: ValueId, mut ty: Type) {
        for (axis, dim) in ty.shape.iter_mut().flatten().enumerate() {
            if *dim == Dim::Unknown {
                *dim = Dim::sym(&format!("{OWN}{}.{axis}", id.index()));
            }
        }
        self.types.insert(id, ty);
    }

    fn read_from_input(&mut self, input: ValueId) {
        let Some(shape) = self.shape(input).cloned() else { return };
        for (axis, dim) in shape.into_iter().enumerate() {
            if let Dim::Sym(symbol) = dim {
                self.sources.entry(symbol).or_insert(Source::Input { value: input, axis });
            }
        }
    }

    fn node(&mut self, graph: &Graph, node: &Node) {
        let types: Vec<Option<&Type>> =
            node.inputs.iter().map(|v| v.and_then(|v| self.types.get(&v))).collect();
        let consts: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|v| v.and_then(|v| graph.as_const(v))).collect();
        let ctx = InferContext { op: &node.op, inputs: &types, consts: &consts, outputs: node.outputs.len() };
        // Opaque nodes, and what does not infer, keep the types they have.
        let Ok(inferred) = infer(&ctx) else { return };
        for (id, ty) in node.outputs.iter().zip(inferred) {
            let mut ty = ty.meet(&graph.value(*id).ty);
            if let (Some(axis), Some(shape)) = (last_element(graph, node), &mut ty.shape) {
                shape[axis] = Dim::Known(1);
            }
            if SIZES.iter().any(|op| node.op.is(op)) {
                self.name_ints(*id, &mut ty);
            }
            self.set(*id, ty);
        }
    }

    fn name_ints(&mut self, id: ValueId, ty: &mut Type) {
        let (Some(dtype), Some(shape)) = (ty.dtype, &ty.shape) else { return };
        let len = match shape.as_slice() {
            [] => 1,
            [Dim::Known(n)] if *n <= 8 => *n as usize,
            _ => return,
        };
        if !dtype.is_int() {
            return;
        }
        let rank = shape.len();
        let ints = ty.ints.get_or_insert_with(|| vec![Dim::Unknown; len]);
        for (index, dim) in ints.iter_mut().enumerate().filter(|(_, d)| **d == Dim::Unknown) {
            let symbol = Symbol::new(&format!("{OWN}{}:{index}", id.index()));
            self.sources.insert(symbol.clone(), Source::Element { value: id, rank, index });
            *dim = Dim::Sym(symbol);
        }
    }
}

/// The axis of which a slice keeps the last element. There is one: nothing is trained on empty sequences,
/// which is why inference alone cannot say so.
fn last_element(graph: &Graph, node: &Node) -> Option<usize> {
    let ints = |slot: usize| graph.as_const(node.input(slot)?)?.to_i64();
    let steps = node.input(4).map_or(Some(vec![1]), |_| ints(4))?;
    if !node.op.is("Slice") || (ints(1)?, ints(2)?, steps) != (vec![-1], vec![i64::MAX], vec![1]) {
        return None;
    }
    let axis = node.input(3).map_or(Some(vec![0]), |_| ints(3))?;
    let rank = graph.value(node.input(0)?).ty.rank()?;
    resolve_axis(*axis.first()?, rank).ok()
}
