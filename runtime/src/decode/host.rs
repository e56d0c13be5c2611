//! Drives a causal language model graph by host tensors: ids go in and all logits come back. The states stay in the
//! session between calls.

use crate::decode::decoder::{Branching, Decoder, Scored};
use crate::decode::greedy::greedy;
use crate::decode::integers;
use crate::decode::layout::{DecoderIo, StateIo};
use crate::decode::rows::{check_rows, cut, joined, positions, rows_segment, segment, width};
use crate::decode::state::{DecoderState, History, check_state};
use crate::session::Session;
use crate::session::error::{RuntimeError, bad_call};
use crate::session::tensor::HostTensor;
use dijiang_format::names::{IDS, LOGITS, MASK, POSITIONS};

/// Prompt tokens fed at a time where nothing is said.
const SEGMENT: usize = 512;

/// A causal language model graph and its state.
///
/// The graph takes `input_ids` and optionally `attention_mask` and `position_ids`, all `[batch, tokens]` of i64 or i32,
/// and states `past_key_values.*`, each replaced by the output `present.*` of the same name. It returns `logits`
/// `[batch, tokens, vocabulary]`. A state of which only the batch is open keeps its size (linear attention); one with a
/// second open dimension starts at length 0 there and grows (a cache). A graph may hold both kinds, or neither: then
/// each sequence is fed in one call.
#[derive(Debug)]
pub struct HostDecoder {
    session: Box<dyn Session>,
    layout: DecoderIo,
    history: History,
    segment: usize,
    is_grouped: bool,
    /// After each row's last token, f32 `[batch, vocabulary]`; none before the first.
    last: Option<HostTensor>,
}

impl HostDecoder {
    /// Takes a loaded graph, with an empty state for a batch of one (or of the size the graph is fixed to).
    ///
    /// An error when the graph's inputs and outputs are not those of a causal language model.
    pub fn new(session: Box<dyn Session>) -> Result<Self, RuntimeError> {
        Self::with_segment(session, SEGMENT)
    }

    /// The same, which feeds this many prompt tokens at a time. Memory depends on them, not on the prompt, unless the
    /// state itself grows.
    pub fn with_segment(session: Box<dyn Session>, segment: usize) -> Result<Self, RuntimeError> {
        if segment == 0 {
            return Err(bad_call("segment", "0 tokens at a time were asked for, expected at least 1"));
        }
        let layout = DecoderIo::of(session.inputs(), session.outputs())?;
        let batch = layout.fixed_batch.unwrap_or(1);
        let mut decoder =
            Self { session, layout, history: History::new(batch), segment, is_grouped: false, last: None };
        decoder.start(batch)?;
        Ok(decoder)
    }

    /// States that the graph takes a segment after a past from one row only, as `GroupQueryAttention` does. Several rows
    /// are then fed all at once, or one column at a time.
    #[must_use]
    pub fn grouped(self) -> Self {
        Self { is_grouped: true, ..self }
    }

    fn segment_for(&self, columns: usize) -> usize {
        match self.is_grouped && self.grows() && self.batch() > 1 {
            true => rows_segment(self.columns(), columns),
            // Without a state each sequence is one call.
            false if self.layout.states.is_empty() => columns.max(1),
            false => self.segment,
        }
    }

    /// What was fed since the start.
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

    /// Feeds rows `segment` tokens at a time and returns the logits after each row's last token, f32
    /// `[batch, vocabulary]`. Rows and mask are as [`HostDecoder::feed`] takes them, and every row needs at least one
    /// token that is no padding.
    pub fn feed_segments(
        &mut self,
        ids: &[Vec<i64>],
        mask: Option<&[Vec<i64>]>,
        segment: usize,
    ) -> Result<HostTensor, RuntimeError> {
        if segment == 0 {
            return Err(bad_call("segment", "0 tokens at a time were asked for, expected at least 1"));
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
            rows.ok_or_else(|| bad_call("input_ids", "a row holds no token, expected at least one per row"))?;
        Ok(HostTensor::from_f32(&[rows.len(), rows[0].len()], &rows.concat())?)
    }

    /// Checks a call against the graph and returns the number of token columns.
    fn check_feed(&self, ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>) -> Result<usize, RuntimeError> {
        check_rows(ids, mask)?;
        if ids.len() != self.batch() {
            let reason = format!("{} rows were given, {} were started", ids.len(), self.batch());
            return Err(bad_call("input_ids", reason));
        }
        let padded = mask.is_some_and(|mask| mask.iter().flatten().any(|&m| m == 0));
        if padded && self.layout.mask.is_none() {
            return Err(bad_call("attention_mask", "the graph has no such input, so rows cannot be padded"));
        }
        if self.layout.states.is_empty() && self.history.columns > 0 {
            return Err(bad_call(
                "input_ids",
                "the graph has no state: each sequence is fed in one call after a start (hint: export the model with its past, as `optimum-cli export onnx --task text-generation-with-past` does, or convert it with a recipe that leaves no softmax)",
            ));
        }
        match ids[0].len() {
            0 => Err(bad_call("input_ids", "no tokens were given, expected at least one")),
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
        let mut feeds = vec![(IDS, integers::tensor(IDS, self.layout.ids, ids)?)];
        if let Some(dtype) = self.layout.mask {
            feeds.push((MASK, integers::tensor(MASK, dtype, visible)?));
        }
        if let Some(dtype) = self.layout.positions {
            feeds
                .push((POSITIONS, integers::tensor(POSITIONS, dtype, &positions(&self.history.seen, mask))?));
        }
        let inputs: Vec<(&str, &HostTensor)> = feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut outputs = self.session.run(&inputs)?;
        Ok(outputs.swap_remove(self.layout.open_logits()))
    }
}

impl HostDecoder {
    fn keep(&mut self, logits: HostTensor) -> Result<Vec<i64>, RuntimeError> {
        let width = logits.shape()[1].max(1);
        let best = logits.to_f32()?.chunks(width).map(|row| greedy(row).map(|id| id as i64)).collect();
        self.last = Some(logits);
        best
    }
}

impl Decoder for HostDecoder {
    fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        if batch == 0 {
            return Err(bad_call("batch", "0 sequences were asked for, expected at least 1"));
        }
        if let Some(fixed) = self.layout.fixed_batch.filter(|&fixed| fixed != batch) {
            return Err(bad_call(
                "batch",
                format!("{batch} sequences were asked for, the graph takes exactly {fixed}"),
            ));
        }
        let zeros = |io: &StateIo| HostTensor::zeros(io.input.dtype, &io.shape(batch, 0));
        let zeros = self.layout.states.iter().map(zeros).collect::<Result<Vec<_>, _>>()?;
        self.session.carry(&self.layout.links(), &zeros)?;
        self.history = History::new(batch);
        self.last = None;
        Ok(())
    }

    fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        // Padding comes last, where operators that count the tokens of a row allow it.
        let columns = width(prompts);
        let (ids, mask) = segment(prompts, 0, columns);
        let even = prompts.iter().all(|row| row.len() == columns);
        let logits =
            self.feed_segments(&ids, (!even).then_some(mask.as_slice()), self.segment_for(columns))?;
        self.keep(logits)
    }

    fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        let ids: Vec<Vec<i64>> = tokens.iter().map(|token| vec![*token]).collect();
        let logits = self.feed(&ids, None)?;
        let last = HostTensor::from_f32(&[tokens.len(), logits.shape()[2]], &logits.to_f32()?)?;
        self.keep(last)
    }

    fn logits(&self) -> Result<HostTensor, RuntimeError> {
        self.last.clone().ok_or_else(|| bad_call("logits", "no token was fed yet"))
    }

    fn state(&self) -> Result<DecoderState, RuntimeError> {
        let names = self.layout.states.iter().map(|io| io.input.name.clone());
        Ok(DecoderState {
            tensors: names.zip(self.session.carried()?).collect(),
            history: self.history.clone(),
        })
    }

    fn set_state(&mut self, state: DecoderState, logits: Option<HostTensor>) -> Result<(), RuntimeError> {
        let state = state.fitted(&self.layout)?;
        check_state(&self.layout, &state)?;
        let tensors: Vec<HostTensor> = state.tensors.into_iter().map(|(_, tensor)| tensor).collect();
        self.session.carry(&self.layout.links(), &tensors)?;
        self.history = state.history;
        self.last = logits;
        Ok(())
    }

    /// Measured, wherever the states lie and whatever the graph declares.
    fn state_bytes(&self) -> usize {
        self.session.carried_bytes()
    }

    fn columns(&self) -> usize {
        self.history.columns
    }

    fn batch(&self) -> usize {
        self.history.seen.len()
    }

    /// Zeros take the place of a cache.
    fn skip_to(&mut self, columns: usize) -> Result<(), RuntimeError> {
        let batch = self.batch();
        let zeros = |io: &StateIo| {
            let tensor = HostTensor::zeros(io.input.dtype, &io.shape(batch, columns))?;
            Ok((io.input.name.clone(), tensor))
        };
        let tensors = self.layout.states.iter().map(zeros).collect::<Result<_, RuntimeError>>()?;
        let mask = if self.grows() { vec![1; columns] } else { Vec::new() };
        let history = History { mask: vec![mask; batch], seen: vec![columns as i64; batch], columns };
        self.set_state(DecoderState { tensors, history }, None)
    }

    fn branching(&self) -> Branching {
        let is_one = self.layout.fixed_batch.is_some() || self.layout.mask.is_none();
        match self.layout.states.is_empty() {
            true => Branching::Never,
            false if is_one || (self.is_grouped && self.grows()) => Branching::Alone,
            false => Branching::Together,
        }
    }

    /// All logits of a segment come to the host at once.
    fn score(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Vec<Scored>>, RuntimeError> {
        let mut scores = vec![Vec::new(); rows.len()];
        if let Some(logits) = self.last.take() {
            // What came before predicts the first token.
            let numbers = logits.to_f32()?;
            for ((score, row), logits) in
                scores.iter_mut().zip(rows).zip(numbers.chunks(logits.shape()[1].max(1)))
            {
                if let Some(token) = row.first() {
                    score.push(Scored::of(logits, *token)?);
                }
            }
        }
        let columns = width(rows).saturating_sub(1);
        let longest = self.segment_for(columns);
        for start in (0..columns).step_by(longest) {
            let length = longest.min(columns - start);
            let (ids, mask) = segment(rows, start, length);
            let logits = self.feed(&ids, Some(&mask))?;
            let vocabulary = logits.shape()[2].max(1);
            let numbers = logits.to_f32()?;
            let own = numbers.chunks(length * vocabulary);
            for ((score, row), own) in scores.iter_mut().zip(rows).zip(own) {
                let predicted = row.iter().skip(start + 1);
                for (token, logits) in predicted.zip(own.chunks(vocabulary)) {
                    score.push(Scored::of(logits, *token)?);
                }
            }
        }
        Ok(scores)
    }
}

fn check_logits(logits: &HostTensor, expected: [usize; 2]) -> Result<(), RuntimeError> {
    match logits.shape() {
        [batch, tokens, _] if [*batch, *tokens] == expected => Ok(()),
        other => {
            let hint = match other {
                [_, 1, _] => " (hint: export the scores of every token, and not of the last alone)",
                _ => "",
            };
            Err(RuntimeError::NotADecoder {
                place: format!("`{LOGITS}`"),
                reason: format!(
                    "it came out as {other:?}, expected [{}, {}, vocabulary]{hint}",
                    expected[0], expected[1]
                ),
            })
        }
    }
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
