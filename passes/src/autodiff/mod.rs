//! Reverse-mode differentiation: graph in, graph out, in ordinary operators that any runtime has.
//!
//! Values that depend on what is asked for are found first, so nothing is written for the rest. The
//! nodes are then visited from the loss backwards; each hands the gradient of its outputs to the rule
//! of its operator (`vjp/`), and contributions to one value are added in the order of that visit.
//!
//! While it travels a gradient may be smaller than its value and stand for its own broadcast, as that
//! of a sum does. Rules ask for it as it is ([`VjpContext::loose`]) or in full ([`VjpContext::grad`]).

use crate::ir::graph::{Graph, NodeId, ValueId};
use crate::ir::infer::Type;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::is_held;
use dims::Dims;
use std::collections::{BTreeMap, BTreeSet};

mod broadcast;
mod context;
mod dims;
mod error;
mod number;
mod runtime_shape;
mod vjp;

pub use context::VjpContext;
pub use error::AutodiffError;

/// The vector-Jacobian product of one operator. Rules hold no state.
pub trait Vjp: Sync {
    /// Qualified as [`crate::ir::op::Op::qualified_name`] is.
    fn op(&self) -> &'static str;

    /// One gradient per input slot; `None` where there is none, or where it is not wanted.
    fn vjp(&self, ctx: &mut VjpContext<'_, '_>) -> Result<Vec<Option<ValueId>>, AutodiffError>;
}

/// Appends to `patch` the nodes that compute d loss / d v for each v of `wrt`, in the shape of v.
/// `None` where the loss does not depend on v, or v holds no floats.
///
/// `loss` has one element; it and `wrt` are values of the patch's base graph. The patch's scope is
/// empty afterwards.
pub fn gradients(
    patch: &mut Patch<'_>,
    loss: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, AutodiffError> {
    check_in_graph(patch, &[loss])?;
    check_loss(patch.graph(), loss)?;
    let seed = seed(patch, loss);
    gradients_from(patch, &[(loss, seed)], wrt)
}

/// The same from gradients that are there already: of each value of the base graph in `seeds`, the
/// gradient of the loss to it, in its own shape and element type.
pub fn gradients_from(
    patch: &mut Patch<'_>,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, AutodiffError> {
    let graph = patch.graph();
    check_in_graph(patch, wrt)?;
    check_in_graph(patch, &seeds.iter().map(|(value, _)| *value).collect::<Vec<_>>())?;
    let (dims, dependent) = (Dims::new(graph), dependent(graph, wrt));
    let mut tape = Tape { patch, dims, graph, dependent, grads: BTreeMap::new() };
    for (value, seed) in seeds {
        if tape.dependent.contains(value) {
            tape.add(*value, *seed);
        }
    }
    for node in graph.order().into_iter().rev() {
        tape.visit(node)?;
    }
    let found = wrt.iter().map(|value| tape.finished(*value)).collect();
    tape.patch.set_scope("");
    Ok(found)
}

fn check_in_graph(patch: &Patch<'_>, values: &[ValueId]) -> Result<(), AutodiffError> {
    let missing = values.iter().find(|v| patch.graph().get_value(**v).is_none());
    match missing {
        Some(value) => Err(AutodiffError::NotInGraph { value: patch.value(*value).name.clone() }),
        None => Ok(()),
    }
}

/// The gradient of the loss to itself.
fn seed(patch: &mut Patch<'_>, loss: ValueId) -> ValueId {
    let ty = &patch.graph().value(loss).ty;
    let (dtype, rank) = (ty.dtype.unwrap_or(DType::F32), ty.rank().unwrap_or_default());
    let one = Tensor::scalar(dtype, 1.0);
    let one = one.with_dims(vec![1; rank]).unwrap_or(one);
    patch.constant("one", one)
}

fn check_loss(graph: &Graph, loss: ValueId) -> Result<(), AutodiffError> {
    let value = graph.value(loss);
    let one = value.ty.shape.as_ref().is_some_and(|s| s.iter().all(|d| d.known() == Some(1)));
    if one && value.ty.dtype.is_some_and(DType::is_float) {
        return Ok(());
    }
    Err(AutodiffError::Loss { value: value.name.clone(), ty: value.ty.to_string() })
}

/// Integers and booleans have no gradient; what is not known may be a float.
fn has_gradient(ty: &Type) -> bool {
    ty.dtype.is_none_or(DType::is_float)
}

/// The values that change with `wrt`, itself included. Those that are held do not.
fn dependent(graph: &Graph, wrt: &[ValueId]) -> BTreeSet<ValueId> {
    let keep = |v: &ValueId| has_gradient(&graph.value(*v).ty);
    let mut found: BTreeSet<ValueId> = wrt.iter().copied().filter(keep).collect();
    for id in graph.order() {
        let node = graph.node(id);
        if !is_held(&node.name) && node.inputs.iter().flatten().any(|v| found.contains(v)) {
            found.extend(node.outputs.iter().copied().filter(keep));
        }
    }
    found
}

/// The gradients as far as they are known.
struct Tape<'p, 'g> {
    patch: &'p mut Patch<'g>,
    dims: Dims,
    graph: &'g Graph,
    dependent: BTreeSet<ValueId>,
    grads: BTreeMap<ValueId, ValueId>,
}

impl Tape<'_, '_> {
    fn visit(&mut self, id: NodeId) -> Result<(), AutodiffError> {
        let node = self.graph.node(id);
        let grads: Vec<Option<ValueId>> = node.outputs.iter().map(|v| self.grads.get(v).copied()).collect();
        let wanted: Vec<bool> =
            node.inputs.iter().map(|v| v.is_some_and(|v| self.dependent.contains(&v))).collect();
        if grads.iter().all(Option::is_none) || !wanted.contains(&true) {
            return Ok(());
        }
        let Some(rule) = vjp::find(&node.op.qualified_name()) else {
            return Err(AutodiffError::NoRule { node: node.name.clone(), op: node.op.qualified_name() });
        };
        self.patch.set_scope(&format!("{}/grad", node.name));
        let mut ctx =
            VjpContext { patch: self.patch, node, dims: &mut self.dims, grads: &grads, wanted: &wanted };
        let found = rule.vjp(&mut ctx)?;
        if found.len() != node.inputs.len() {
            return Err(ctx.error(&format!("the rule gives {} gradients", found.len())));
        }
        for ((value, grad), _) in node.inputs.iter().zip(found).zip(wanted).filter(|(_, wanted)| *wanted) {
            if let Some((value, grad)) = value.zip(grad) {
                self.add(value, grad);
            }
        }
        Ok(())
    }

    fn add(&mut self, value: ValueId, grad: ValueId) {
        let sum = match self.grads.get(&value) {
            Some(before) => self.patch.add(*before, grad),
            None => grad,
        };
        self.grads.insert(value, sum);
    }

    fn finished(&mut self, value: ValueId) -> Option<ValueId> {
        let grad = self.grads.get(&value).copied()?;
        self.patch.set_scope(&format!("{}/grad", self.graph.value(value).name));
        Some(self.dims.in_full(self.patch, grad, value))
    }
}

#[cfg(test)]
mod gradcheck;
#[cfg(test)]
mod tests;
