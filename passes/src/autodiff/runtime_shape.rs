//! Shapes that are only known when the model runs.

use super::dims::{Dims, Source};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::shape::{Dim, Symbol};
use dijiang_format::dtype::DType;

impl Dims {
    /// A gradient in the whole shape of its value.
    pub(super) fn in_full(&mut self, patch: &mut Patch<'_>, grad: ValueId, value: ValueId) -> ValueId {
        if !self.is_loose(patch, grad, value) {
            return grad;
        }
        let shape = self.runtime_shape(patch, value);
        patch.expand(grad, shape)
    }

    fn is_loose(&self, patch: &Patch<'_>, grad: ValueId, value: ValueId) -> bool {
        match (&patch.ty(grad).shape, self.shape(value)) {
            (Some(grad), Some(value)) => {
                let grew = |(g, v): (&Dim, &Dim)| *g == Dim::Known(1) && *v != Dim::Known(1);
                grad.len() < value.len() || grad.iter().zip(value).any(grew)
            }
            _ => false,
        }
    }

    /// One dim of a value, as `[1]` integers: from a constant, an input, or the value itself, which
    /// would otherwise stay in memory for its shape alone.
    pub(super) fn dim(&mut self, patch: &mut Patch<'_>, value: ValueId, axis: usize) -> ValueId {
        let dim = self.shape(value).and_then(|s| s.get(axis)).cloned();
        match dim {
            Some(Dim::Known(n)) => patch.ints(&[n as i64]),
            Some(Dim::Sym(symbol)) => self.symbol(patch, &symbol, value, axis),
            Some(Dim::Unknown) | None => patch.shape_of(value, axis as i64, axis as i64 + 1),
        }
    }

    fn symbol(&mut self, patch: &mut Patch<'_>, symbol: &Symbol, value: ValueId, axis: usize) -> ValueId {
        if let Some(read) = self.read.get(symbol) {
            return *read;
        }
        let dim = match self.source(symbol) {
            Some(Source::Input { value, axis }) => patch.shape_of(value, axis as i64, axis as i64 + 1),
            Some(Source::Element { value, rank: 0, .. }) => patch.unsqueeze(value, &[0]),
            Some(Source::Element { value, index, .. }) => {
                let whole = self.shape(value).is_some_and(|s| s.as_slice() == [Dim::Known(1)]);
                if whole { value } else { patch.slice(value, 0, index as i64, index as i64 + 1) }
            }
            None => patch.shape_of(value, axis as i64, axis as i64 + 1),
        };
        let dim = patch.cast(dim, DType::I64);
        self.read.insert(symbol.clone(), dim);
        dim
    }

    pub(super) fn runtime_shape(&mut self, patch: &mut Patch<'_>, value: ValueId) -> ValueId {
        match self.shape(value).cloned() {
            Some(shape) => self.runtime_dims(patch, value, &shape),
            None => patch.shape_of(value, 0, i64::MAX),
        }
    }

    pub(super) fn runtime_dims(&mut self, patch: &mut Patch<'_>, value: ValueId, shape: &[Dim]) -> ValueId {
        let known = |d: &Dim| d.known().map(|n| n as i64);
        let mut parts = Vec::new();
        let mut axis = 0;
        while axis < shape.len() {
            let run: Vec<i64> = shape[axis..].iter().map_while(known).collect();
            if run.is_empty() {
                parts.push(self.dim(patch, value, axis));
                axis += 1;
            } else {
                axis += run.len();
                parts.push(patch.ints(&run));
            }
        }
        match parts.as_slice() {
            [] => patch.ints(&[]),
            [only] => *only,
            _ => patch.concat(&parts, 0),
        }
    }
}
