//! Integers of shapes and bounds: computed here where they are known, by the graph where not.

use super::VjpContext;
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::Dim;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Known(i64),
    /// `[1]` integers.
    Computed(ValueId),
}

impl VjpContext<'_, '_> {
    /// One dim of a value of the graph.
    pub(super) fn dim(&mut self, value: ValueId, axis: usize) -> Number {
        match self.dims.shape(value).and_then(|s| s.get(axis)) {
            Some(Dim::Known(n)) => Number::Known(*n as i64),
            _ => Number::Computed(self.runtime_dim(value, axis)),
        }
    }

    /// An element of an integer vector.
    pub(super) fn element(&mut self, vector: ValueId, index: usize) -> Number {
        if let Some(known) = self.patch.value(vector).as_const().and_then(crate::ir::tensor::Tensor::to_i64)
            && let Some(n) = known.get(index)
        {
            return Number::Known(*n);
        }
        if let Some(Dim::Known(n)) = self.dims.ints(vector).and_then(|ints| ints.get(index)) {
            return Number::Known(*n as i64);
        }
        Number::Computed(self.patch.slice(vector, 0, index as i64, index as i64 + 1))
    }

    fn computed(&mut self, number: Number) -> ValueId {
        match number {
            Number::Known(n) => self.patch.ints(&[n]),
            Number::Computed(value) => value,
        }
    }

    fn combine(&mut self, op: &str, a: Number, b: Number, f: fn(i64, i64) -> i64) -> Number {
        if let (Number::Known(a), Number::Known(b)) = (a, b) {
            return Number::Known(f(a, b));
        }
        let (a, b) = (self.computed(a), self.computed(b));
        Number::Computed(self.patch.node(Op::new(op), &[a, b]))
    }

    pub(super) fn plus(&mut self, a: Number, b: Number) -> Number {
        match (a, b) {
            (Number::Known(0), x) | (x, Number::Known(0)) => x,
            (a, b) => self.combine("Add", a, b, i64::saturating_add),
        }
    }

    pub(super) fn minus(&mut self, a: Number, b: Number) -> Number {
        if b == Number::Known(0) { a } else { self.combine("Sub", a, b, i64::saturating_sub) }
    }

    pub(super) fn least(&mut self, a: Number, b: Number) -> Number {
        self.combine("Min", a, b, i64::min)
    }

    pub(super) fn most(&mut self, a: Number, b: Number) -> Number {
        self.combine("Max", a, b, i64::max)
    }

    /// A negative number counts from the back of `dim`.
    pub(super) fn counted_from_front(&mut self, x: Number, dim: Number) -> Number {
        match x {
            Number::Known(n) if n >= 0 => x,
            Number::Known(_) => self.plus(x, dim),
            Number::Computed(value) => {
                let (zero, dim) = (self.patch.ints(&[0]), self.computed(dim));
                let below = self.patch.node(Op::new("Less"), &[value, zero]);
                let moved = self.patch.add(value, dim);
                Number::Computed(self.patch.select(below, moved, value))
            }
        }
    }

    /// A vector of integers.
    pub(super) fn vector(&mut self, numbers: &[Number]) -> ValueId {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < numbers.len() {
            let known = |n: &Number| if let Number::Known(n) = n { Some(*n) } else { None };
            let run: Vec<i64> = numbers[at..].iter().map_while(known).collect();
            at += run.len().max(1);
            parts.push(match run.as_slice() {
                [] => self.computed(numbers[at - 1]),
                run => self.patch.ints(run),
            });
        }
        match parts.as_slice() {
            [] => self.patch.ints(&[]),
            [only] => *only,
            _ => self.patch.concat(&parts, 0),
        }
    }
}
