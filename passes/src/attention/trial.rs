//! Small runs of a graph: two rows of tokens, with a past and with padding where a trial says so.

use crate::ir::cache_input::is_cache;
use crate::ir::eval::Array;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::shape::Dim;
use crate::pattern::Miss;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, MASK};
use ndarray::ArrayD;
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

/// Whether an input says where tokens stand: their positions, or how many came before.
pub(super) fn tells_order(graph: &Graph, input: ValueId) -> bool {
    let mut words = graph.value(input).name.split(['_', '.', '-']);
    words.any(|word| ["pos", "position", "positions", "past", "cache"].contains(&word))
}

/// A place in an input, counted through all of its rows, of so many columns each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub index: usize,
    pub columns: usize,
}

impl Place {
    pub(super) fn column(self) -> usize {
        self.index % self.columns
    }
}

/// What the symbols of a graph's inputs stand for, in runs of so many rows.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    symbols: BTreeMap<String, Size>,
    rows: usize,
}

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
                (name, Some(4)) if name.contains("past") || is_cache(graph, *input) => {
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
        Self { symbols: found, rows: 2 }
    }

    /// In runs of one row.
    pub(super) fn of_one_row(self) -> Self {
        Self { rows: 1, ..self }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Contents of a graph input in a trial: `padding`'s tokens, positions, or numbers of the right shape.
    pub(super) fn fill(
        &self,
        graph: &Graph,
        input: ValueId,
        padding: Option<ValueId>,
        trial: &Trial,
    ) -> Result<Array, Miss> {
        if padding == Some(input) {
            let is_token = |at: Place| trial.is_token(at.index / at.columns, at.column());
            return self.fill_with(graph, input, trial, |at| f64::from(u8::from(is_token(at))));
        }
        if graph.value(input).ty.dtype.is_none_or(DType::is_float) {
            // Only its shape may matter; what its numbers do must show.
            return self.fill_with(graph, input, trial, |at| 0.37 + 0.11 * at.index as f64);
        }
        self.fill_with(graph, input, trial, |at| (trial.past + at.column()) as f64)
    }

    /// A graph input in a trial that holds `number` of each place.
    pub(super) fn fill_with(
        &self,
        graph: &Graph,
        input: ValueId,
        trial: &Trial,
        number: impl Fn(Place) -> f64,
    ) -> Result<Array, Miss> {
        let value = graph.value(input);
        let dims = self.dims(graph, input, trial);
        let columns = dims.last().copied().unwrap_or(1).max(1);
        let places = (0..dims.iter().product()).map(|index| Place { index, columns });
        let numbers: Vec<f64> = places.map(number).collect();
        let filled = match value.ty.dtype {
            Some(DType::Bool) => {
                let flags = numbers.iter().map(|x| *x != 0.0).collect();
                ArrayD::from_shape_vec(dims, flags).map(Array::B).map_err(|e| e.to_string())
            }
            Some(dtype) if !dtype.is_float() => {
                Array::from_i64(&dims, numbers.iter().map(|x| *x as i64).collect())
            }
            _ => Array::from_f64(&dims, numbers),
        };
        filled.map_err(|reason| Miss::check(&value.name, reason))
    }

    pub(super) fn dims(&self, graph: &Graph, input: ValueId, trial: &Trial) -> Vec<usize> {
        let shape = graph.value(input).ty.shape.as_deref().unwrap_or_default();
        shape.iter().map(|d| self.size(d, trial)).collect()
    }

    fn size(&self, dim: &Dim, trial: &Trial) -> usize {
        let Dim::Sym(symbol) = dim else { return dim.known().unwrap_or(1) as usize };
        if let Some(size) = self.symbols.get(symbol.name()) {
            return size.of(trial, self.rows);
        }
        let parts = symbol.name().split('+').map(|part| match (part.trim(), self.symbols.get(part.trim())) {
            (_, Some(size)) => size.of(trial, self.rows),
            (name, None) => name.parse().unwrap_or(trial.time),
        });
        parts.sum()
    }
}

impl Size {
    fn of(self, trial: &Trial, rows: usize) -> usize {
        match self {
            Self::Batch => rows,
            Self::Time => trial.time,
            Self::Past => trial.past,
            Self::Total => trial.total(),
        }
    }
}
