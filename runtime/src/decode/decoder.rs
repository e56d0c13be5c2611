//! Drives a causal language model graph token by token or segment by segment, keeping its state between calls.

use crate::decode::layout::{DecoderIo, StateIo};
use crate::session::Session;
use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LOGITS, MASK, POSITIONS};
use dijiang_format::widths::{STATE_BLOCKS, padded};

/// Everything a [`Decoder`] remembers between two calls.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderState {
    /// The graph's state inputs by name, in the graph's order, batch first.
    pub tensors: Vec<(String, HostTensor)>,
    /// What was fed so far.
    pub history: History,
}

/// What a decoder was fed since the last reset.
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
    fn new(batch: usize) -> Self {
        Self { mask: vec![Vec::new(); batch], seen: vec![0; batch], columns: 0 }
    }
}

/// A causal language model graph and its state.
///
/// The graph takes `input_ids` and optionally `attention_mask` and `position_ids`, all `[batch, tokens]` of i64 or i32,
/// and states `past_key_values.*`, each replaced by the output `present.*` of the same name. It returns `logits`
/// `[batch, tokens, vocabulary]`. A state of which only the batch is open keeps its size (linear attention); one with a
/// second open dimension starts at length 0 there and grows (a cache). A graph may hold both kinds, or neither: then
/// each sequence is fed in one call.
#[derive(Debug)]
pub struct Decoder {
    session: Box<dyn Session>,
    layout: DecoderIo,
    history: History,
}

impl Decoder {
    /// Takes a loaded graph, with an empty state for a batch of one (or of the size the graph is fixed to).
    ///
    /// An error when the graph's inputs and outputs are not those of a causal language model.
    pub fn new(session: Box<dyn Session>) -> Result<Self, RuntimeError> {
        let layout = DecoderIo::of(session.as_ref())?;
        let batch = layout.fixed_batch.unwrap_or(1);
        let mut decoder = Self { session, layout, history: History::new(batch) };
        decoder.reset(batch)?;
        Ok(decoder)
    }

    /// Forgets all tokens and sets the number of sequences decoded side by side.
    pub fn reset(&mut self, batch: usize) -> Result<(), RuntimeError> {
        if batch == 0 {
            return Err(bad("batch", "0 sequences were asked for, expected at least 1"));
        }
        if let Some(fixed) = self.layout.fixed_batch.filter(|&fixed| fixed != batch) {
            return Err(bad(
                "batch",
                format!("{batch} sequences were asked for, the graph takes exactly {fixed}"),
            ));
        }
        let zeros = |io: &StateIo| HostTensor::zeros(io.input.dtype, &io.shape(batch, 0));
        let zeros = self.layout.states.iter().map(zeros).collect::<Result<Vec<_>, _>>()?;
        self.session.carry(&self.layout.links(), &zeros)?;
        self.history = History::new(batch);
        Ok(())
    }

    /// Sequences decoded side by side.
    pub fn batch(&self) -> usize {
        self.history.seen.len()
    }

    /// What was fed since the last reset.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether the state grows with the number of tokens.
    pub fn grows(&self) -> bool {
        self.layout.grows()
    }

    /// The graph being driven.
    pub fn session(&self) -> &dyn Session {
        self.session.as_ref()
    }

    /// Bytes of state held now, wherever it lies: measured, whatever the graph declares.
    pub fn state_bytes(&self) -> usize {
        self.session.carried_bytes()
    }

    /// A copy of what the decoder remembers, to be put back with [`Decoder::set_state`].
    pub fn state(&self) -> Result<DecoderState, RuntimeError> {
        let names = self.layout.states.iter().map(|io| io.input.name.clone());
        Ok(DecoderState {
            tensors: names.zip(self.session.carried()?).collect(),
            history: self.history.clone(),
        })
    }

    /// A state of another graph of the bundle in the widths of this one, which differ by zeros behind the numbers.
    pub(crate) fn fitted(&self, mut state: DecoderState) -> Result<DecoderState, RuntimeError> {
        let (batch, columns) = (state.history.seen.len(), state.history.columns);
        for (io, (_, tensor)) in self.layout.states.iter().zip(&mut state.tensors).filter(|(io, _)| !io.grows)
        {
            *tensor = fit(tensor, &io.shape(batch, columns))?;
        }
        Ok(state)
    }

    /// Continues from a remembered state; an error when its names, dtypes or shapes are not this graph's.
    pub fn set_state(&mut self, state: DecoderState) -> Result<(), RuntimeError> {
        check_state(&self.layout, &state)?;
        let tensors: Vec<HostTensor> = state.tensors.into_iter().map(|(_, tensor)| tensor).collect();
        self.session.carry(&self.layout.links(), &tensors)?;
        self.history = state.history;
        Ok(())
    }

    /// Feeds `[batch][tokens]` ids, all rows equally long, and returns logits `[batch, tokens, vocabulary]` in the
    /// graph's own dtype. A mask of the same shape holds 1 for a token and 0 for padding; without one, nothing is
    /// padding. When the graph fails, the state is left as it was.
    pub fn feed(&mut self, ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>) -> Result<HostTensor, RuntimeError> {
        let tokens = self.check_feed(ids, mask)?;
        let ones = vec![vec![1; tokens]; ids.len()];
        let mask = mask.unwrap_or(&ones);
        let all_mask = if self.grows() { joined(&self.history.mask, mask) } else { Vec::new() };
        let visible = if self.grows() { &all_mask } else { mask };
        let logits = self.run(ids, mask, visible)?;
        for (seen, row) in self.history.seen.iter_mut().zip(mask) {
            *seen += row.iter().sum::<i64>();
        }
        if self.grows() {
            self.history.mask = all_mask;
        }
        self.history.columns += tokens;
        check_logits(&logits, [ids.len(), tokens])?;
        Ok(logits)
    }

    /// Feeds a prompt `segment` tokens at a time and returns the logits after each row's last token, f32
    /// `[batch, vocabulary]`. Memory depends on the segment, not on the prompt, unless the state itself grows.
    ///
    /// Every row needs at least one token that is no padding.
    pub fn prefill(
        &mut self,
        ids: &[Vec<i64>],
        mask: Option<&[Vec<i64>]>,
        segment: usize,
    ) -> Result<HostTensor, RuntimeError> {
        if segment == 0 {
            return Err(bad("segment", "0 tokens at a time were asked for, expected at least 1"));
        }
        check_rows(ids, mask)?;
        let total = ids.first().map_or(0, Vec::len);
        let mut last: Vec<Option<Vec<f32>>> = vec![None; ids.len()];
        for start in (0..total).step_by(segment) {
            let range = start..(start + segment).min(total);
            let part = cut(ids, &range);
            let part_mask = mask.map(|mask| cut(mask, &range));
            let logits = self.feed(&part, part_mask.as_deref())?;
            keep_last(&mut last, &logits, part_mask.as_deref())?;
        }
        let rows: Option<Vec<Vec<f32>>> = last.into_iter().collect();
        let rows = rows.filter(|rows| !rows.is_empty());
        let rows =
            rows.ok_or_else(|| bad("input_ids", "a row holds no token, expected at least one per row"))?;
        Ok(HostTensor::from_f32(&[rows.len(), rows[0].len()], &rows.concat())?)
    }

    /// Checks a call against the graph and returns the number of token columns.
    fn check_feed(&self, ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>) -> Result<usize, RuntimeError> {
        check_rows(ids, mask)?;
        if ids.len() != self.batch() {
            let reason = format!("{} rows were given, the decoder was reset to {}", ids.len(), self.batch());
            return Err(bad("input_ids", reason));
        }
        let padded = mask.is_some_and(|mask| mask.iter().flatten().any(|&m| m == 0));
        if padded && self.layout.mask.is_none() {
            return Err(bad("attention_mask", "the graph has no such input, so rows cannot be padded"));
        }
        if self.layout.states.is_empty() && self.history.columns > 0 {
            return Err(bad(
                "input_ids",
                "the graph has no state, so feed each sequence in one call after a reset",
            ));
        }
        match ids[0].len() {
            0 => Err(bad("input_ids", "no tokens were given, expected at least one")),
            tokens => Ok(tokens),
        }
    }

    /// Runs the graph; `visible` is the mask that it takes, of this call's columns or of all.
    fn run(
        &mut self,
        ids: &[Vec<i64>],
        mask: &[Vec<i64>],
        visible: &[Vec<i64>],
    ) -> Result<HostTensor, RuntimeError> {
        let mut feeds = vec![(IDS, integers(self.layout.ids, ids)?)];
        if let Some(dtype) = self.layout.mask {
            feeds.push((MASK, integers(dtype, visible)?));
        }
        if let Some(dtype) = self.layout.positions {
            feeds.push((POSITIONS, integers(dtype, &positions(&self.history.seen, mask))?));
        }
        let inputs: Vec<(&str, &HostTensor)> = feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut outputs = self.session.run(&inputs)?;
        Ok(outputs.swap_remove(self.layout.open_logits()))
    }
}

fn bad(place: &'static str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::BadCall { place, reason: reason.into() }
}

fn check_state(layout: &DecoderIo, state: &DecoderState) -> Result<(), RuntimeError> {
    let history = &state.history;
    let batch = history.seen.len();
    if batch == 0 || history.mask.len() != batch || layout.fixed_batch.is_some_and(|fixed| fixed != batch) {
        return Err(bad("state", format!("it holds {batch} rows and {} mask rows", history.mask.len())));
    }
    let mask_columns = if layout.grows() { history.columns } else { 0 };
    if history.mask.iter().any(|row| row.len() != mask_columns) {
        return Err(bad("state", format!("it holds mask rows that are not {mask_columns} long")));
    }
    if state.tensors.len() != layout.states.len() {
        let reason =
            format!("it holds {} tensors, the graph takes {}", state.tensors.len(), layout.states.len());
        return Err(bad("state", reason));
    }
    for (io, (name, tensor)) in layout.states.iter().zip(&state.tensors) {
        let fits = io.input.dtype == tensor.dtype() && tensor.shape() == io.shape(batch, history.columns);
        if io.input.name != *name || !fits {
            let found = format!("`{name}` {} {:?}", tensor.dtype(), tensor.shape());
            let expected = format!("`{}` {} {}", io.input.name, io.input.dtype, io.input.shape_text());
            return Err(bad("state", format!("it holds {found} where the graph takes {expected}")));
        }
    }
    Ok(())
}

/// Whether one of two widths is the other in whole blocks.
fn is_padded(a: usize, b: usize, block: usize) -> bool {
    let (own, wide) = (a.min(b), a.max(b));
    own == wide || padded(own, block) == wide
}

/// A state in the widths of another graph of its bundle: with zeros behind its numbers, or without those that are there.
/// What is no such state is left as it is.
pub(crate) fn fit(tensor: &HostTensor, shape: &[usize]) -> Result<HostTensor, RuntimeError> {
    let own = tensor.shape();
    let is_state = own.len() == shape.len() && (3..=4).contains(&own.len()) && own[..2] == shape[..2];
    let widths = || own.iter().copied().zip(shape.iter().copied()).enumerate().skip(2);
    if !is_state || !widths().zip(STATE_BLOCKS).all(|((_, (a, b)), block)| is_padded(a, b, block)) {
        return Ok(tensor.clone());
    }
    let mut found = tensor.clone();
    for (axis, (from, to)) in widths() {
        if from < to {
            let mut missing = found.shape().to_vec();
            missing[axis] = to - from;
            found = HostTensor::concat(axis, &[&found, &HostTensor::zeros(tensor.dtype(), &missing)?])?;
        } else if from > to {
            let behind = found.slice(axis, to, from)?;
            if behind.to_f32()?.iter().any(|value| *value != 0.0) {
                return Err(bad("state", format!("it is {own:?} where {shape:?} is expected")));
            }
            found = found.slice(axis, 0, to)?;
        }
    }
    Ok(found)
}

fn check_rows(ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>) -> Result<(), RuntimeError> {
    let Some(first) = ids.first() else {
        return Err(bad("input_ids", "no rows were given, expected at least one"));
    };
    if let Some(row) = ids.iter().find(|row| row.len() != first.len()) {
        let reason =
            format!("rows hold {} and {} tokens, expected equally many; pad them", first.len(), row.len());
        return Err(bad("input_ids", reason));
    }
    let Some(mask) = mask else { return Ok(()) };
    if mask.len() != ids.len() || mask.iter().any(|row| row.len() != first.len()) {
        let reason = format!("it is not {} rows of {}, the shape of input_ids", ids.len(), first.len());
        return Err(bad("attention_mask", reason));
    }
    match mask.iter().flatten().find(|&&m| m != 0 && m != 1) {
        Some(other) => Err(bad("attention_mask", format!("it holds {other}, expected 0 or 1"))),
        None => Ok(()),
    }
}

fn check_logits(logits: &HostTensor, expected: [usize; 2]) -> Result<(), RuntimeError> {
    match logits.shape() {
        [batch, tokens, _] if [*batch, *tokens] == expected => Ok(()),
        other => Err(RuntimeError::NotADecoder {
            place: format!("`{LOGITS}`"),
            reason: format!(
                "it came out as {other:?}, expected [{}, {}, vocabulary]",
                expected[0], expected[1]
            ),
        }),
    }
}

fn cut(rows: &[Vec<i64>], range: &std::ops::Range<usize>) -> Vec<Vec<i64>> {
    rows.iter().map(|row| row[range.clone()].to_vec()).collect()
}

fn joined(left: &[Vec<i64>], right: &[Vec<i64>]) -> Vec<Vec<i64>> {
    left.iter().zip(right).map(|(left, right)| [left.as_slice(), right].concat()).collect()
}

/// Positions that count only real tokens; padding before the first one sits at 0.
pub(crate) fn positions(seen: &[i64], mask: &[Vec<i64>]) -> Vec<Vec<i64>> {
    let row = |(&seen, mask): (&i64, &Vec<i64>)| {
        let mut count = seen;
        let place = |m: &i64| {
            count += m;
            (count - 1).max(0)
        };
        mask.iter().map(place).collect()
    };
    seen.iter().zip(mask).map(row).collect()
}

fn integers(dtype: DType, rows: &[Vec<i64>]) -> Result<HostTensor, RuntimeError> {
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    let flat = rows.concat();
    if dtype == DType::I32 {
        let narrow: Result<Vec<i32>, _> = flat.iter().map(|&value| i32::try_from(value)).collect();
        let narrow = narrow.map_err(|_| bad("input_ids", "an id does not fit the graph's i32"))?;
        return Ok(HostTensor::from_i32(&shape, &narrow)?);
    }
    Ok(HostTensor::from_i64(&shape, &flat)?)
}

/// Replaces each row's logits by those after its last real token of this segment, where it has one.
fn keep_last(
    last: &mut [Option<Vec<f32>>],
    logits: &HostTensor,
    mask: Option<&[Vec<i64>]>,
) -> Result<(), RuntimeError> {
    let tokens = logits.shape()[1];
    for (row, kept) in last.iter_mut().enumerate() {
        let real = |mask: &[Vec<i64>]| mask[row].iter().rposition(|&m| m == 1);
        let column = mask.map_or_else(|| tokens.checked_sub(1), real);
        if let Some(column) = column {
            let values = logits.slice(1, column, column + 1)?.slice(0, row, row + 1)?;
            *kept = Some(values.to_f32()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_real_tokens_and_go_on() {
        let mask = [vec![0, 0, 1, 1], vec![1, 1, 1, 1]];
        assert_eq!(positions(&[0, 0], &mask), [[0, 0, 0, 1], [0, 1, 2, 3]]);
        assert_eq!(positions(&[2, 4], &[vec![1, 0], vec![1, 1]]), [[2, 2], [4, 5]]);
    }

    #[test]
    fn states_fit_where_what_differs_is_padding() {
        let numbers: Vec<f32> = (1..=2 * 33 * 17).map(|n| n as f32).collect();
        let small = HostTensor::from_f32(&[1, 2, 33, 17], &numbers).expect("a tensor");
        let wide = fit(&small, &[1, 2, 64, 32]).expect("zeros behind");
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

    #[test]
    fn ragged_rows_and_wrong_masks_are_refused() {
        let message =
            |ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>| check_rows(ids, mask).unwrap_err().to_string();
        assert_eq!(message(&[], None), "input_ids: no rows were given, expected at least one");
        assert_eq!(
            message(&[vec![1], vec![1, 2]], None),
            "input_ids: rows hold 1 and 2 tokens, expected equally many; pad them"
        );
        assert!(
            message(&[vec![1]], Some(&[vec![1, 1]])).starts_with("attention_mask: it is not 1 rows of 1")
        );
        assert_eq!(message(&[vec![1]], Some(&[vec![2]])), "attention_mask: it holds 2, expected 0 or 1");
    }
}
