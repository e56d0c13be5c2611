//! What a rule sees, and the shorthand that rules share.

use super::AutodiffError;
use super::broadcast::{Repeated, repeated};
use super::dims::{Dims, OWN};
use crate::ir::graph::{Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::shape::{Dim, Shape, show};
use crate::ir::tensor::Tensor;

/// One node whose gradients are asked for, and the patch to write them into.
#[derive(Debug)]
pub struct VjpContext<'c, 'g> {
    pub patch: &'c mut Patch<'g>,
    pub node: &'g Node,
    pub(super) dims: &'c mut Dims,
    pub(super) grads: &'c [Option<ValueId>],
    pub(super) wanted: &'c [bool],
}

/// Dims as a reader knows them, without the names that are only given here.
fn shown(dims: &[Dim]) -> String {
    let own = |dim: &Dim| matches!(dim, Dim::Sym(symbol) if symbol.name().starts_with(OWN));
    let dims: Vec<Dim> = dims.iter().map(|d| if own(d) { Dim::Unknown } else { d.clone() }).collect();
    show(&dims)
}

/// What a rule returns.
pub(super) type Grads = Result<Vec<Option<ValueId>>, AutodiffError>;

impl VjpContext<'_, '_> {
    pub fn error(&self, reason: &str) -> AutodiffError {
        let (node, op) = (self.node.name.clone(), self.node.op.qualified_name());
        AutodiffError::Node { node, op, reason: reason.to_owned() }
    }

    /// Whether the gradient of an input is asked for.
    pub fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }

    pub fn input(&self, slot: usize) -> Result<ValueId, AutodiffError> {
        self.node.input(slot).ok_or_else(|| self.error(&format!("input {slot} is missing")))
    }

    /// The first output.
    pub fn output(&self) -> ValueId {
        self.node.outputs[0]
    }

    /// The gradient of an output in full; `None` where it is zero.
    pub fn grad_of(&mut self, slot: usize) -> Option<ValueId> {
        let grad = self.grads.get(slot).copied().flatten()?;
        Some(self.dims.in_full(self.patch, grad, self.node.outputs[slot]))
    }

    /// The gradient of the first output, in full.
    pub fn grad(&mut self) -> Result<ValueId, AutodiffError> {
        self.grad_of(0).ok_or_else(|| self.error("only the first output has a gradient"))
    }

    /// The gradient of the first output, which may stand for its own broadcast.
    pub fn loose(&self) -> Result<ValueId, AutodiffError> {
        let grad = self.grads.first().copied().flatten();
        grad.ok_or_else(|| self.error("only the first output has a gradient"))
    }

    /// The dims of a value of the graph; those that inference leaves open have names here.
    pub fn shape(&self, value: ValueId) -> Result<Shape, AutodiffError> {
        let name = &self.patch.value(value).name;
        self.dims
            .shape(value)
            .cloned()
            .ok_or_else(|| self.error(&format!("the rank of `{name}` is not known")))
    }

    /// An axis attribute, counted from the front.
    pub fn axis(&self, rank: usize) -> Result<usize, AutodiffError> {
        let axis = self.node.op.int("axis").ok_or_else(|| self.error("attribute `axis` is missing"))?;
        self.resolve(axis, rank)
    }

    pub fn resolve(&self, axis: i64, rank: usize) -> Result<usize, AutodiffError> {
        resolve_axis(axis, rank).map_err(|reason| self.error(&reason))
    }

    /// The contents of an integer input, where they do not change from run to run.
    pub fn const_ints(&self, slot: usize) -> Option<Vec<i64>> {
        let value = self.node.input(slot)?;
        self.patch.value(value).as_const()?.to_i64()
    }

    /// The contents of an integer vector, as far as they are known.
    pub fn known_ints(&self, value: ValueId) -> Option<Vec<Dim>> {
        self.dims.ints(value).cloned()
    }

    /// The shape of a value as integers.
    pub fn runtime_shape(&mut self, value: ValueId) -> ValueId {
        self.dims.runtime_shape(self.patch, value)
    }

    /// One dim of a value as `[1]` integers.
    pub fn runtime_dim(&mut self, value: ValueId, axis: usize) -> ValueId {
        self.dims.dim(self.patch, value, axis)
    }

    /// Zeros in the shape of a value.
    pub fn zeros_like(&mut self, value: ValueId) -> ValueId {
        let shape = self.runtime_shape(value);
        self.zeros(value, shape)
    }

    /// Zeros of the element type of `like`.
    pub fn zeros(&mut self, like: ValueId, shape: ValueId) -> ValueId {
        let zero = Tensor::scalar(self.patch.dtype(like), 0.0);
        let zero = zero.with_dims(vec![1]).unwrap_or(zero);
        self.patch.node(Op::new("ConstantOfShape").with("value", zero), &[shape])
    }

    /// One gradient, for the given slot.
    pub fn only(&self, slot: usize, grad: ValueId) -> Grads {
        let mut grads = vec![None; self.node.inputs.len()];
        match grads.get_mut(slot) {
            Some(place) => *place = Some(grad),
            None => return Err(self.error(&format!("input {slot} is missing"))),
        }
        Ok(grads)
    }

    /// From the shape of the first output to that of an input which it was broadcast from.
    pub fn fit(&mut self, grad: ValueId, slot: usize) -> Result<ValueId, AutodiffError> {
        let (output, like) = (self.output(), self.input(slot)?);
        let (to, from) = (self.shape(output)?, self.shape(like)?);
        let axes = self.repeated(&to, &from, like)?.axes();
        let found = self.patch.ty(grad).shape.clone().unwrap_or_default();
        let small = |axis: &usize| found.get(*axis) == Some(&Dim::Known(1)) && to[*axis] != Dim::Known(1);
        let whole = !axes.is_empty() && (found.len() < to.len() || axes.iter().any(small));
        let grad = if whole { self.dims.in_full(self.patch, grad, output) } else { grad };
        self.sum_to(grad, &to, &from, like)
    }

    fn repeated(&self, to: &[Dim], from: &[Dim], like: ValueId) -> Result<Repeated, AutodiffError> {
        repeated(to, from).ok_or_else(|| AutodiffError::Undecided {
            node: self.node.name.clone(),
            op: self.node.op.qualified_name(),
            value: self.patch.value(like).name.clone(),
            from: shown(from),
            to: shown(to),
        })
    }

    /// Sums `grad`, which has all dims of `to`, over the axes in which `from` was broadcast to it.
    /// `like` is the value that was.
    pub fn sum_to(
        &mut self,
        grad: ValueId,
        to: &[Dim],
        from: &[Dim],
        like: ValueId,
    ) -> Result<ValueId, AutodiffError> {
        let found = self.repeated(to, from, like)?;
        let axes: Vec<i64> = found.axes().iter().map(|a| *a as i64).collect();
        if axes.is_empty() {
            return Ok(grad);
        }
        let sum = self.patch.reduce("ReduceSum", grad, &axes, !found.inner.is_empty());
        if found.lead == 0 || found.inner.is_empty() {
            return Ok(sum);
        }
        let lead: Vec<i64> = (0..found.lead as i64).collect();
        Ok(self.patch.squeeze(sum, &lead))
    }

    /// `grad` in the shape of `like`, which has as many elements. `from` is the shape of `grad`.
    pub fn reshape_like(
        &mut self,
        grad: ValueId,
        from: &[Dim],
        like: ValueId,
    ) -> Result<ValueId, AutodiffError> {
        let Some(to) = self.dims.shape(like).cloned() else {
            let shape = self.runtime_shape(like);
            return Ok(self.patch.reshape_to(grad, shape));
        };
        let target = |(i, dim): (usize, &Dim)| match dim.known() {
            Some(n) => n as i64,
            None if from.get(i) == Some(dim) => 0,
            None => -1,
        };
        let target: Vec<i64> = to.iter().enumerate().map(target).collect();
        let free = target.iter().filter(|t| **t == -1).count();
        // A known dim of zero would read as a copy.
        if free <= 1 && !to.contains(&Dim::Known(0)) {
            return Ok(self.patch.reshape(grad, &target));
        }
        let shape = self.dims.runtime_dims(self.patch, like, &to);
        Ok(self.patch.reshape_to(grad, shape))
    }

    /// The last two axes exchanged; what was exchanged already is taken as it was.
    pub fn transposed(&mut self, x: ValueId) -> ValueId {
        let rank = self.patch.rank(x);
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(rank.saturating_sub(2), rank.saturating_sub(1));
        self.transpose(x, &perm)
    }

    /// Whether `x` was made by exchanging the last two axes of something.
    pub fn is_transposed(&self, x: ValueId) -> bool {
        let made = self.patch.producer(x).filter(|n| n.op.is("Transpose"));
        let Some(perm) = made.and_then(|n| n.op.ints("perm")) else { return false };
        let rank = perm.len() as i64;
        let mut swapped: Vec<i64> = (0..rank).collect();
        swapped.swap(perm.len().saturating_sub(2), perm.len().saturating_sub(1));
        perm.iter().zip(swapped).all(|(a, b)| a.rem_euclid(rank) == b)
    }

    /// A transpose, joined with the one that made `x`.
    pub fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        let made = self.patch.producer(x).filter(|n| n.op.is("Transpose"));
        let before = made.and_then(|n| n.op.ints("perm").map(<[i64]>::to_vec).zip(n.input(0)));
        let Some((before, source)) = before else { return self.patch.transpose(x, perm) };
        let at = |axis: &i64| resolve_axis(*axis, before.len()).ok().map(|a| before[a]);
        let joined: Option<Vec<i64>> = perm.iter().map(at).collect();
        match joined {
            Some(joined) if joined.iter().enumerate().all(|(i, a)| *a == i as i64) => source,
            Some(joined) => self.patch.transpose(source, &joined),
            None => self.patch.transpose(x, perm),
        }
    }
}
