//! Which values of a graph hold one row for each token of a call, each computed from the same token alone: their rows
//! may stand in any order, as long as attention is told.
//!
//! *Declines when:* an operator between mixes tokens, or is not known not to.

use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::op::Op;
use crate::ir::shape::Dim;
use std::collections::BTreeMap;

/// The axis of the tokens, by value.
pub(super) type TokenAxes = BTreeMap<ValueId, usize>;

/// Operators that take every element by itself, with those that stand at the same place of the other inputs.
const ELEMENTWISE: [&str; 32] = [
    "Abs",
    "Add",
    "And",
    "Cast",
    "Clip",
    "Cos",
    "Div",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Greater",
    "Identity",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "Relu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Sub",
    "Tanh",
    "Where",
];

/// Whether an operator takes every element by itself.
pub(in crate::attention) fn is_elementwise(op: &Op) -> bool {
    op.domain().is_empty() && ELEMENTWISE.contains(&op.name())
}

/// The token axes of all that is computed from `tokens`; `attends` are the nodes that look from token to token. `None`
/// where something else may.
pub(super) fn token_axes(
    graph: &Graph,
    tokens: TokenAxes,
    attends: &dyn Fn(&Node) -> bool,
) -> Option<TokenAxes> {
    let mut axes = tokens;
    for node in graph.order().into_iter().map(|id| graph.node(id)) {
        let reads = node.inputs.iter().flatten().any(|v| axes.contains_key(v));
        if !reads || node.op.is("Shape") {
            continue;
        }
        let view = View { graph, node, axes: &axes };
        if attends(node) {
            // Queries, keys and values are packed by token. What is cached is in its own order.
            let by_token = (0..3).all(|slot| view.axis(slot) == Some(1));
            let alone = (3..node.inputs.len()).all(|slot| view.axis(slot).is_none());
            axes.insert(*node.outputs.first().filter(|_| by_token && alone)?, 1);
            continue;
        }
        let axis = view.axis_after()?;
        axes.extend(node.outputs.iter().map(|output| (*output, axis)));
    }
    Some(axes)
}

struct View<'a> {
    graph: &'a Graph,
    node: &'a Node,
    axes: &'a TokenAxes,
}

impl View<'_> {
    fn axis(&self, slot: usize) -> Option<usize> {
        self.axes.get(&self.node.input(slot)?).copied()
    }

    fn shape(&self, slot: usize) -> Option<&[Dim]> {
        self.graph.value(self.node.input(slot)?).ty.shape.as_deref()
    }

    fn shape_after(&self) -> Option<&[Dim]> {
        self.graph.value(*self.node.outputs.first()?).ty.shape.as_deref()
    }

    fn rank(&self, slot: usize) -> Option<usize> {
        self.shape(slot).map(<[Dim]>::len)
    }

    /// Whether the first input alone holds tokens.
    fn only_first(&self) -> Option<usize> {
        let alone = (1..self.node.inputs.len()).all(|slot| self.axis(slot).is_none());
        self.axis(0).filter(|_| alone)
    }

    fn attr_axis(&self, default: i64) -> Option<usize> {
        resolve_axis(self.node.op.int("axis").unwrap_or(default), self.rank(0)?).ok()
    }

    fn attr_axes(&self, rank: usize) -> Option<Vec<usize>> {
        self.node.op.ints("axes")?.iter().map(|axis| resolve_axis(*axis, rank).ok()).collect()
    }

    /// The axis of the tokens in what the node gives, if it takes each token by itself.
    fn axis_after(&self) -> Option<usize> {
        let op = &self.node.op;
        match (op.domain(), op.name()) {
            _ if is_elementwise(op) => self.elementwise(),
            ("", "Gather") => {
                let (by, table) = (self.attr_axis(0)?, self.axis(0));
                self.axis(1).filter(|_| table.is_none()).map(|axis| by + axis)
            }
            ("", "MatMul") | ("com.microsoft", "MatMulNBits") => self.product(),
            ("", "Reshape") => self.reshaped(),
            ("", "Transpose") => {
                let axis = self.only_first()?;
                op.ints("perm")?.iter().position(|from| *from == axis as i64)
            }
            ("", "Unsqueeze") => {
                let axis = self.only_first()?;
                let new = self.attr_axes(self.rank(0)? + op.ints("axes")?.len())?;
                (0..self.rank(0)? + new.len()).filter(|place| !new.contains(place)).nth(axis)
            }
            ("", "Squeeze") => {
                let (axis, gone) = (self.only_first()?, self.attr_axes(self.rank(0)?)?);
                (!gone.contains(&axis)).then(|| axis - gone.iter().filter(|place| **place < axis).count())
            }
            ("", "Concat") => {
                let axes: Vec<Option<usize>> =
                    (0..self.node.inputs.len()).map(|slot| self.axis(slot)).collect();
                let axis = *axes.first()?;
                axis.filter(|axis| axes.iter().all(|other| *other == Some(*axis)))
                    .filter(|axis| self.attr_axis(0) != Some(*axis))
            }
            ("", "Split") => self.only_first().filter(|axis| self.attr_axis(0).is_some_and(|by| by != *axis)),
            ("", "Slice") => {
                let along = self.graph.as_const(self.node.input(3)?)?.to_i64()?;
                let along: Option<Vec<usize>> =
                    along.iter().map(|by| resolve_axis(*by, self.rank(0)?).ok()).collect();
                self.only_first().filter(|axis| along.is_some_and(|along| !along.contains(axis)))
            }
            ("", "Softmax" | "LogSoftmax") => {
                self.only_first().filter(|axis| self.attr_axis(-1).is_some_and(|by| by != *axis))
            }
            ("", "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization") => {
                self.only_first().filter(|axis| self.attr_axis(-1).is_some_and(|from| *axis < from))
            }
            ("", "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" | "ReduceSumSquare") => {
                let (axis, gone) = (self.only_first()?, self.attr_axes(self.rank(0)?)?);
                let before = match op.int("keepdims") {
                    Some(0) => gone.iter().filter(|place| **place < axis).count(),
                    _ => 0,
                };
                (!gone.contains(&axis)).then(|| axis - before)
            }
            ("com.microsoft", "RotaryEmbedding") => {
                let tokens = self.rank(0)?.checked_sub(2)?;
                (self.axis(0) == Some(tokens) && self.axis(1) == Some(1)).then_some(tokens)
            }
            _ => None,
        }
    }

    /// Counted from the back, tokens stand at one place in all inputs, and where they stand other inputs are the same
    /// for all.
    fn elementwise(&self) -> Option<usize> {
        let mut place = None;
        for slot in 0..self.node.inputs.len() {
            let Some(axis) = self.axis(slot) else { continue };
            let own = self.rank(slot)? - axis;
            if *place.get_or_insert(own) != own {
                return None;
            }
        }
        let place = place?;
        let same_for_all = |slot: usize| {
            let shape = self.shape(slot)?;
            Some(shape.len() < place || shape[shape.len() - place] == Dim::Known(1))
        };
        let others = (0..self.node.inputs.len()).filter(|slot| self.node.input(*slot).is_some());
        let mut others = others.filter(|slot| self.axis(*slot).is_none());
        others.all(|slot| same_for_all(slot) == Some(true)).then_some(())?;
        self.shape_after()?.len().checked_sub(place)
    }

    /// Of rows with a matrix.
    fn product(&self) -> Option<usize> {
        let (axis, rank) = (self.only_first()?, self.rank(0)?);
        let is_row = axis + 2 == rank && self.shape_after()?.len() == rank;
        let for_all = self.node.op.name() == "MatMulNBits" || self.rank(1)? == 2;
        (if for_all { axis + 1 < rank } else { is_row }).then_some(axis)
    }

    /// The axes before the tokens stay, dims of 1 aside, and so does that of the tokens.
    fn reshaped(&self) -> Option<usize> {
        let (axis, from, to) = (self.only_first()?, self.shape(0)?, self.shape_after()?);
        let before = |dims: &[Dim]| -> Vec<Dim> {
            dims.iter().filter(|dim| **dim != Dim::Known(1)).cloned().collect()
        };
        let known = from[axis] != Dim::Unknown && from[axis] != Dim::Known(1);
        let stays =
            |place: &usize| to[*place] == from[axis] && before(&to[..*place]) == before(&from[..axis]);
        (0..to.len()).find(stays).filter(|_| known && !from[..axis].contains(&Dim::Unknown))
    }
}
