//! Small runs of a graph: two rows of tokens, with a past and with padding where a trial says so.

use crate::ir::eval::Array;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::shape::Dim;
use crate::pattern::Miss;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, MASK};
use std::collections::BTreeMap;

/// One run: two rows of `past + time` tokens, of which some are padding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    pub past: usize,
    pub time: usize,
    /// Padding at the left of row 0, and at the right of row 1.
    pub left: usize,
    pub right: usize,
}

impl Trial {
    pub(super) fn total(&self) -> usize {
        self.past + self.time
    }

    /// What a query that is padding itself sees differs between exporters, and does not matter.
    pub(super) fn sees_a_token(&self, row: usize, query: usize) -> bool {
        // After padding at the left, the last key seen is the first to be a token; before it at the right, key 0.
        self.is_token(row, if row == 0 { self.past + query } else { 0 })
    }

    pub(super) fn tokens(&self, row: usize) -> usize {
        self.total() - if row == 0 { self.left } else { self.right }
    }

    pub(super) fn is_token(&self, row: usize, key: usize) -> bool {
        if row == 0 { key >= self.left } else { key < self.total() - self.right }
    }
}

pub(super) fn is_padding_input(graph: &Graph, input: ValueId) -> bool {
    let value = graph.value(input);
    value.name.contains("mask") && value.ty.rank() == Some(2)
}

/// What the symbols of a graph's inputs stand for.
#[derive(Debug)]
pub(super) struct Sizes(BTreeMap<String, Size>);

#[derive(Debug, Clone, Copy)]
enum Size {
    Batch,
    Time,
    Past,
    Total,
}

impl Sizes {
    /// From the inputs that every exporter gives the same names.
    pub(super) fn of(graph: &Graph) -> Self {
        let mut found = BTreeMap::new();
        for input in graph.inputs() {
            let value = graph.value(*input);
            let meaning: &[Option<Size>] = match (value.name.as_str(), value.ty.rank()) {
                (MASK, Some(2)) => &[Some(Size::Batch), Some(Size::Total)],
                (name, Some(4)) if name.contains("past") => {
                    &[Some(Size::Batch), None, Some(Size::Past), None]
                }
                (_, Some(2)) => &[Some(Size::Batch), Some(Size::Time)],
                (_, Some(3)) => &[Some(Size::Batch), Some(Size::Time), None],
                (_, Some(4)) => &[Some(Size::Batch)],
                _ => &[],
            };
            for (dim, size) in value.ty.shape.iter().flatten().zip(meaning) {
                if let (Dim::Sym(symbol), Some(size)) = (dim, size) {
                    found.entry(symbol.name().to_owned()).or_insert(*size);
                }
            }
        }
        // Without a past, the mask and the tokens share one symbol.
        for input in graph.inputs().iter().map(|v| graph.value(*v)).filter(|v| v.name == IDS) {
            if let Some([_, Dim::Sym(time)]) = input.ty.shape.as_deref() {
                found.insert(time.name().to_owned(), Size::Time);
            }
        }
        Self(found)
    }

    /// Contents of a graph input in a trial: `padding`'s tokens, positions, or numbers of the right shape.
    pub(super) fn fill(
        &self,
        graph: &Graph,
        input: ValueId,
        padding: Option<ValueId>,
        trial: &Trial,
    ) -> Result<Array, Miss> {
        let value = graph.value(input);
        let dims = self.dims(graph, input, trial);
        let fail = |reason: String| Miss::check(&value.name, reason);
        let len = dims.iter().product();
        if padding == Some(input) {
            let tokens = (0..len).map(|i| i64::from(trial.is_token(i / dims[1], i % dims[1])));
            return Array::from_i64(&dims, tokens.collect()).map_err(fail);
        }
        if value.ty.dtype.is_none_or(DType::is_float) {
            // Only its shape may matter; what its numbers do must show.
            let numbers = (0..len).map(|i| 0.37 + 0.11 * i as f64);
            return Array::from_f64(&dims, numbers.collect()).map_err(fail);
        }
        let columns = dims.last().copied().unwrap_or(1).max(1);
        let positions = (0..len).map(|i| (trial.past + i % columns) as i64);
        Array::from_i64(&dims, positions.collect()).map_err(fail)
    }

    pub(super) fn dims(&self, graph: &Graph, input: ValueId, trial: &Trial) -> Vec<usize> {
        let shape = graph.value(input).ty.shape.as_deref().unwrap_or_default();
        shape.iter().map(|d| self.size(d, trial)).collect()
    }

    fn size(&self, dim: &Dim, trial: &Trial) -> usize {
        let Dim::Sym(symbol) = dim else { return dim.known().unwrap_or(1) as usize };
        if let Some(size) = self.0.get(symbol.name()) {
            return size.of(trial);
        }
        let parts = symbol.name().split('+').map(|part| match (part.trim(), self.0.get(part.trim())) {
            (_, Some(size)) => size.of(trial),
            (name, None) => name.parse().unwrap_or(trial.time),
        });
        parts.sum()
    }
}

impl Size {
    fn of(self, trial: &Trial) -> usize {
        match self {
            Self::Batch => 2,
            Self::Time => trial.time,
            Self::Past => trial.past,
            Self::Total => trial.total(),
        }
    }
}
