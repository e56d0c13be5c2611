//! What a decoder remembers between two calls, and how the state of one graph of a bundle fits another.

use crate::decode::layout::{DecoderIo, StateIo};
use crate::decode::ring::arranged;
use crate::session::error::{RuntimeError, bad_call};
use crate::session::tensor::HostTensor;
use dijiang_format::widths::{STATE_MULTIPLES, padded};

/// Everything a [`Decoder`](super::decoder::Decoder) remembers between two calls.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderState {
    /// The graph's state inputs by name, in the graph's order, batch first.
    pub tensors: Vec<(String, HostTensor)>,
    /// What was fed so far.
    pub history: History,
}

impl DecoderState {
    /// Some of its rows, in this order; a row may come several times.
    pub fn rows(&self, rows: &[usize]) -> Result<Self, RuntimeError> {
        let gather = |(name, tensor): &(String, HostTensor)| Ok((name.clone(), tensor.rows(rows)?));
        let tensors = self.tensors.iter().map(gather).collect::<Result<_, RuntimeError>>()?;
        let History { mask, seen, columns } = &self.history;
        let history = History {
            mask: rows.iter().map(|row| mask[*row].clone()).collect(),
            seen: rows.iter().map(|row| seen[*row]).collect(),
            columns: *columns,
        };
        Ok(Self { tensors, history })
    }

    /// A state of another graph of the bundle as this one has it: rings apart or together, in widths that differ by zeros
    /// after the numbers.
    pub(crate) fn fitted(mut self, layout: &DecoderIo) -> Result<Self, RuntimeError> {
        let (batch, columns) = (self.history.seen.len(), self.history.columns);
        let wanted = |io: &StateIo| (io.input.name.clone(), io.shape(batch, columns));
        let wanted: Vec<_> = layout.states.iter().map(wanted).collect();
        self.tensors = arranged(self.tensors, &wanted)?;
        for (io, (_, tensor)) in layout.states.iter().zip(&mut self.tensors).filter(|(io, _)| !io.grows) {
            *tensor = fit(tensor, &io.shape(batch, columns))?;
        }
        Ok(self)
    }
}

/// What a decoder was fed since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The attention mask of all tokens, `[batch][tokens]`; rows stay empty when no state grows.
    pub mask: Vec<Vec<i64>>,
    /// Tokens that were no padding, per row.
    pub seen: Vec<i64>,
    /// Token columns, padding included.
    pub columns: usize,
}

impl History {
    pub(crate) fn new(batch: usize) -> Self {
        Self { mask: vec![Vec::new(); batch], seen: vec![0; batch], columns: 0 }
    }
}

/// An error where names, dtypes or shapes of a state are not those of a graph.
pub(crate) fn check_state(layout: &DecoderIo, state: &DecoderState) -> Result<(), RuntimeError> {
    let history = &state.history;
    let batch = history.seen.len();
    if batch == 0 || history.mask.len() != batch || layout.fixed_batch.is_some_and(|fixed| fixed != batch) {
        return Err(bad_call("state", format!("it holds {batch} rows and {} mask rows", history.mask.len())));
    }
    let mask_columns = if layout.grows() { history.columns } else { 0 };
    if history.mask.iter().any(|row| row.len() != mask_columns) {
        return Err(bad_call("state", format!("it holds mask rows that are not {mask_columns} long")));
    }
    if state.tensors.len() != layout.states.len() {
        let reason =
            format!("it holds {} tensors, the graph takes {}", state.tensors.len(), layout.states.len());
        return Err(bad_call("state", reason));
    }
    for (io, (name, tensor)) in layout.states.iter().zip(&state.tensors) {
        let fits = io.input.dtype == tensor.dtype() && tensor.shape() == io.shape(batch, history.columns);
        if io.input.name != *name || !fits {
            let found = format!("`{name}` {} {:?}", tensor.dtype(), tensor.shape());
            let expected = format!("`{}` {} {}", io.input.name, io.input.dtype, io.input.shape_text());
            return Err(bad_call("state", format!("it holds {found} where the graph takes {expected}")));
        }
    }
    Ok(())
}

/// Whether one of two widths is the other in whole blocks.
fn is_padded(a: usize, b: usize, block: usize) -> bool {
    let (own, wide) = (a.min(b), a.max(b));
    own == wide || padded(own, block) == wide
}

/// A state in the widths of another graph of its bundle: with zeros after its numbers, or without those that are there.
/// What is no such state is left as it is.
pub(crate) fn fit(tensor: &HostTensor, shape: &[usize]) -> Result<HostTensor, RuntimeError> {
    let own = tensor.shape();
    let is_state = own.len() == shape.len() && (3..=4).contains(&own.len()) && own[..2] == shape[..2];
    let widths = || own.iter().copied().zip(shape.iter().copied()).enumerate().skip(2);
    if !is_state || !widths().zip(STATE_MULTIPLES).all(|((_, (a, b)), block)| is_padded(a, b, block)) {
        return Ok(tensor.clone());
    }
    let mut found = tensor.clone();
    for (axis, (from, to)) in widths() {
        if from < to {
            let mut missing = found.shape().to_vec();
            missing[axis] = to - from;
            found = HostTensor::concat(axis, &[&found, &HostTensor::zeros(tensor.dtype(), &missing)?])?;
        } else if from > to {
            let rest = found.slice(axis, to, from)?;
            if rest.to_f32()?.iter().any(|value| *value != 0.0) {
                return Err(bad_call("state", format!("it is {own:?} where {shape:?} is expected")));
            }
            found = found.slice(axis, 0, to)?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_fit_where_what_differs_is_padding() {
        let numbers: Vec<f32> = (1..=2 * 33 * 17).map(|n| n as f32).collect();
        let small = HostTensor::from_f32(&[1, 2, 33, 17], &numbers).expect("a tensor");
        let wide = fit(&small, &[1, 2, 64, 32]).expect("zeros after the numbers");
        assert_eq!(wide.shape(), [1, 2, 64, 32]);
        let values = wide.to_f32().expect("floats");
        assert_eq!(values.iter().sum::<f32>(), numbers.iter().sum::<f32>());
        assert_eq!((values[16], values[17], values[32]), (17.0, 0.0, 18.0));
        assert_eq!(fit(&wide, small.shape()).expect("zeros are cut"), small);
        let full = HostTensor::from_f32(&[1, 1, 64], &[1.0; 64]).expect("a tensor");
        let cut = fit(&full, &[1, 1, 60]).expect_err("a number that is not zero is not cut").to_string();
        assert_eq!(cut, "state: it is [1, 1, 64] where [1, 1, 60] is expected");
        // Other rows, other blocks, twice as wide, another rank.
        for other in [vec![2, 2, 64, 32], vec![1, 2, 65, 17], vec![1, 2, 128, 17], vec![1, 2, 64]] {
            assert_eq!(fit(&small, &other).expect("left to the check"), small);
        }
    }
}
