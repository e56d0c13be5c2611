//! Decodes with everything bound where it is computed: a cache that grows is one buffer, which is past and present at
//! once, and a state that keeps its size is two, which change places. The graph gives the likeliest next token and the
//! logits of the last token alone.

use crate::decode::decoder::Decoder;
use crate::decode::integers::Integers;
use crate::decode::layout::{DecoderIo, StateIo, vocabulary};
use crate::decode::rows::{ending, joined, positions, rows_segment, segment, width};
use crate::decode::state::{DecoderState, History, check_state};
use crate::ort::program::{DeviceTensor, Program};
use crate::session::Io;
use crate::session::error::{RuntimeError, bad_call, misfit};
use crate::session::tensor::HostTensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LAST, LOGITS, MASK, NEXT, PAST, POSITIONS};

/// Tokens that a cache has room for from its first token on, where nobody says how many will come.
const FIRST: usize = 512;
/// And before that: memory that was taken is not always given back.
const EMPTY: usize = 1;

/// A model whose graph gives [`NEXT`] and `[batch, 1, vocabulary]` logits beside its states. A cache that grows must be
/// that of an operator which writes into its past, such as `GroupQueryAttention`.
#[derive(Debug)]
pub(crate) struct GrowingDecoder {
    /// One reads the first buffer of each state and writes the second, and one the other way round.
    programs: [Program; 2],
    layout: DecoderIo,
    vocabulary: usize,
    /// Prompt tokens fed at a time, at most.
    segment: usize,
    /// Tokens that a cache has room for.
    capacity: usize,
    rows: Rows,
}

/// The sequences of one start.
#[derive(Debug)]
struct Rows {
    fed: Fed,
    states: Vec<Buffers>,
    /// Which program runs next.
    turn: usize,
    next: DeviceTensor,
    logits: DeviceTensor,
    /// Of rows that ended in several segments, or that came with a state.
    host_logits: Option<HostTensor>,
    is_fed: bool,
    /// What the mask is a part of where nothing is padding.
    ones: Option<DeviceTensor>,
    inputs: Option<Inputs>,
}

/// What was fed since the start.
#[derive(Debug, Clone)]
struct Fed {
    /// Tokens that were no padding, per row.
    seen: Vec<i64>,
    columns: usize,
    /// The mask of all columns, where a state grows and some token was padding.
    mask: Option<Vec<Vec<i64>>>,
}

impl Fed {
    fn of(history: History) -> Self {
        let History { mask, seen, columns } = history;
        let is_padded = mask.iter().flatten().any(|mark| *mark == 0);
        Self { seen, columns, mask: is_padded.then_some(mask) }
    }

    fn ones(&self, columns: usize) -> Vec<Vec<i64>> {
        vec![vec![1; columns]; self.seen.len()]
    }

    fn history(&self, grows: bool) -> History {
        let ones = || self.ones(if grows { self.columns } else { 0 });
        let mask = self.mask.clone().unwrap_or_else(ones);
        History { mask, seen: self.seen.clone(), columns: self.columns }
    }

    /// The same after a call of so many columns; without a mask, nothing is padding.
    fn after(&self, tokens: usize, mask: Option<&[Vec<i64>]>, grows: bool) -> Self {
        let seen = match mask {
            Some(mask) => {
                self.seen.iter().zip(mask).map(|(seen, row)| seen + row.iter().sum::<i64>()).collect()
            }
            None => self.seen.iter().map(|seen| seen + tokens as i64).collect(),
        };
        let marks = match (&self.mask, mask) {
            _ if !grows => None,
            (None, None) => None,
            (Some(before), None) => Some(joined(before, &self.ones(tokens))),
            (None, Some(mask)) => Some(joined(&self.ones(self.columns), mask)),
            (Some(before), Some(mask)) => Some(joined(before, mask)),
        };
        Self { seen, columns: self.columns + tokens, mask: marks }
    }
}

#[derive(Debug)]
struct Buffers {
    first: DeviceTensor,
    /// None where the first is past and present at once.
    second: Option<DeviceTensor>,
}

impl Buffers {
    /// What the program of this turn reads.
    fn past(&self, turn: usize) -> &DeviceTensor {
        self.second.as_ref().filter(|_| turn == 1).unwrap_or(&self.first)
    }
}

/// Where the integers of a call lie.
#[derive(Debug)]
struct Inputs {
    ids: Integers,
    positions: Option<Integers>,
    last: Integers,
}

impl GrowingDecoder {
    /// Takes a loaded graph, with an empty state for one sequence.
    pub(crate) fn new(program: Program, segment: usize) -> Result<Self, RuntimeError> {
        if segment == 0 {
            return Err(bad_call("segment", "0 tokens at a time were asked for, expected at least 1"));
        }
        let layout = DecoderIo::of(program.inputs(), program.outputs())?;
        if layout.states.is_empty() {
            return Err(misfit(PAST, "the graph has no state, so it cannot be fed in several calls"));
        }
        if !program.outputs().iter().any(|io| io.name == NEXT) {
            return Err(misfit(NEXT, "the graph has no such output"));
        }
        if !program.inputs().iter().any(|io| io.name == LAST) {
            return Err(misfit(LAST, "the graph has no such input"));
        }
        let is_wide = |io: &Io| io.dtype == DType::I64;
        let integers =
            program.inputs().iter().filter(|io| [IDS, MASK, POSITIONS].contains(&io.name.as_str()));
        if let Some(narrow) = integers.clone().find(|io| !is_wide(io)) {
            return Err(misfit(&narrow.name, &format!("it is {}, expected i64", narrow.dtype)));
        }
        let vocabulary = vocabulary(&program.outputs()[layout.logits])?;
        let other = program.again()?;
        let programs = [program, other];
        let rows = Rows::new(&programs[0], &layout, [1, 0], vocabulary)?;
        let mut decoder = Self { programs, layout, vocabulary, segment, capacity: 0, rows };
        decoder.start(1)?;
        Ok(decoder)
    }

    fn grows(&self) -> bool {
        self.layout.grows()
    }

    /// New rows without a token, in buffers for `capacity` tokens.
    fn empty(&mut self, batch: usize, capacity: usize) -> Result<(), RuntimeError> {
        let rows = Rows::new(&self.programs[0], &self.layout, [batch, capacity], self.vocabulary)?;
        rows.bind(&mut self.programs, &self.layout)?;
        (self.rows, self.capacity) = (rows, capacity);
        Ok(())
    }

    /// New rows of a state, in buffers for `capacity` tokens.
    fn take(&mut self, state: DecoderState, capacity: usize) -> Result<(), RuntimeError> {
        let batch = state.history.seen.len();
        let mut rows = Rows::new(&self.programs[0], &self.layout, [batch, capacity], self.vocabulary)?;
        for ((own, io), (_, tensor)) in rows.states.iter().zip(&self.layout.states).zip(&state.tensors) {
            own.first.write(&padded_to(tensor, &io.shape(batch, capacity))?)?;
        }
        rows.fed = Fed::of(state.history);
        rows.bind(&mut self.programs, &self.layout)?;
        (self.rows, self.capacity) = (rows, capacity);
        Ok(())
    }

    /// Makes room for more tokens than a cache was made for: at least twice as many, so that the copies stay few.
    fn make_room(&mut self, columns: usize) -> Result<(), RuntimeError> {
        if self.grows() && columns > self.capacity {
            self.reserve(columns.max(2 * self.capacity).max(FIRST))?;
        }
        Ok(())
    }

    /// Feeds `[batch][tokens]` ids; without a mask, nothing is padding.
    fn feed(&mut self, ids: &[Vec<i64>], mask: Option<&[Vec<i64>]>) -> Result<(), RuntimeError> {
        let (batch, tokens) = (self.batch(), ids.first().map_or(0, Vec::len));
        if ids.len() != batch {
            return Err(bad_call(
                "input_ids",
                format!("{} rows were given, {batch} were started", ids.len()),
            ));
        }
        self.make_room(self.columns() + tokens)?;
        let turn = self.rows.turn;
        self.rows.put_ids(&mut self.programs[turn], &self.layout, ids, mask)?;
        let fed = self.rows.fed.after(tokens, mask, self.grows());
        let (columns, most, mask) = match self.grows() {
            true => (fed.columns, self.capacity, fed.mask.as_deref()),
            false => (tokens, tokens, mask),
        };
        self.rows.put_mask(&mut self.programs[turn], &self.layout, [columns, most], mask)?;
        self.programs[turn].run()?;
        let rows = &mut self.rows;
        (rows.fed, rows.turn, rows.host_logits, rows.is_fed) = (fed, 1 - turn, None, true);
        Ok(())
    }

    fn next(&self) -> Result<Vec<i64>, RuntimeError> {
        Ok(self.rows.next.read()?.to_i64()?)
    }

    fn segment_for(&self, columns: usize) -> usize {
        match self.grows() && self.batch() > 1 {
            true => rows_segment(self.columns(), columns),
            false => self.segment,
        }
    }
}

impl Decoder for GrowingDecoder {
    fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        if batch == 0 {
            return Err(bad_call("batch", "0 sequences were asked for, expected at least 1"));
        }
        self.empty(batch, if self.grows() { EMPTY } else { 0 })
    }

    fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        let columns = width(prompts);
        let length = self.segment_for(columns);
        let even = prompts.iter().all(|row| row.len() == columns);
        let mut next = vec![0; prompts.len()];
        let mut last = vec![Vec::new(); prompts.len()];
        for start in (0..columns).step_by(length) {
            let (ids, mask) = segment(prompts, start, length.min(columns - start));
            self.feed(&ids, (!even).then_some(mask.as_slice()))?;
            let ends = ending(prompts, start, length);
            if ends.is_empty() {
                continue;
            }
            let found = self.next()?;
            ends.iter().for_each(|row| next[*row] = found[*row]);
            if ends.len() < prompts.len() {
                let logits = self.logits()?.to_f32()?;
                let of = |row: usize| logits[row * self.vocabulary..(row + 1) * self.vocabulary].to_vec();
                ends.iter().for_each(|row| last[*row] = of(*row));
            }
        }
        if last.iter().all(|row| !row.is_empty()) {
            let shape = [last.len(), self.vocabulary];
            self.rows.host_logits = Some(HostTensor::from_f32(&shape, &last.concat())?);
        }
        Ok(next)
    }

    fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        let ids: Vec<Vec<i64>> = tokens.iter().map(|token| vec![*token]).collect();
        self.feed(&ids, None)?;
        self.next()
    }

    fn logits(&self) -> Result<HostTensor, RuntimeError> {
        match &self.rows.host_logits {
            Some(logits) => Ok(logits.clone()),
            None if self.rows.is_fed => {
                let numbers = self.rows.logits.read()?.to_f32()?;
                Ok(HostTensor::from_f32(&[self.batch(), self.vocabulary], &numbers)?)
            }
            None => Err(bad_call("logits", "no token was fed yet")),
        }
    }

    fn state(&self) -> Result<DecoderState, RuntimeError> {
        let Rows { fed, states, turn, .. } = &self.rows;
        let read = |(io, buffers): (&StateIo, &Buffers)| {
            let tensor = buffers.past(*turn).read()?;
            let filled = match io.growing_axis() {
                Some(axis) => tensor.slice(axis, 0, fed.columns)?,
                None => tensor,
            };
            Ok((io.input.name.clone(), filled))
        };
        let tensors = self.layout.states.iter().zip(states).map(read).collect::<Result<_, RuntimeError>>()?;
        Ok(DecoderState { tensors, history: fed.history(self.grows()) })
    }

    fn set_state(&mut self, state: DecoderState, logits: Option<HostTensor>) -> Result<(), RuntimeError> {
        let state = state.fitted(&self.layout)?;
        check_state(&self.layout, &state)?;
        let capacity = if self.grows() { state.history.columns.max(FIRST) } else { 0 };
        self.take(state, capacity)?;
        self.rows.host_logits = logits;
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        let (batch, columns) = (self.batch(), self.columns());
        let bytes = |io: &StateIo| io.shape(batch, columns).iter().product::<usize>() * io.input.dtype.size();
        self.layout.states.iter().map(bytes).sum()
    }

    fn columns(&self) -> usize {
        self.rows.fed.columns
    }

    fn batch(&self) -> usize {
        self.rows.fed.seen.len()
    }

    fn reserve(&mut self, columns: usize) -> Result<(), RuntimeError> {
        if !self.grows() || columns <= self.capacity {
            return Ok(());
        }
        if self.columns() == 0 {
            return self.empty(self.batch(), columns);
        }
        let logits = self.logits().ok();
        let state = self.state()?;
        self.take(state, columns)?;
        self.rows.host_logits = logits;
        Ok(())
    }

    fn skip_to(&mut self, columns: usize) -> Result<(), RuntimeError> {
        self.make_room(columns)?;
        self.rows.fed = Fed { seen: vec![columns as i64; self.batch()], columns, mask: None };
        Ok(())
    }
}

impl Rows {
    /// Buffers of zeros for `[batch, capacity]`, which no program reads yet.
    fn new(
        program: &Program,
        layout: &DecoderIo,
        [batch, capacity]: [usize; 2],
        vocabulary: usize,
    ) -> Result<Self, RuntimeError> {
        let buffers = |io: &StateIo| {
            let buffer = || program.allocate(io.input.dtype, &io.shape(batch, capacity));
            Ok(Buffers { first: buffer()?, second: if io.grows { None } else { Some(buffer()?) } })
        };
        let logits = program.outputs()[layout.logits].dtype;
        Ok(Self {
            fed: Fed::of(History::new(batch)),
            states: layout.states.iter().map(buffers).collect::<Result<_, RuntimeError>>()?,
            turn: 0,
            next: program.allocate(DType::I64, &[batch, 1])?,
            logits: program.allocate(logits, &[batch, 1, vocabulary])?,
            host_logits: None,
            is_fed: false,
            ones: None,
            inputs: None,
        })
    }

    fn bind(&self, programs: &mut [Program; 2], layout: &DecoderIo) -> Result<(), RuntimeError> {
        for (turn, program) in programs.iter_mut().enumerate() {
            for (io, buffers) in layout.states.iter().zip(&self.states) {
                program.bind_input(&io.input.name, buffers.past(turn))?;
                program.bind_output(&io.present, buffers.past(1 - turn))?;
            }
            program.bind_output(NEXT, &self.next)?;
            program.bind_output(LOGITS, &self.logits)?;
        }
        Ok(())
    }

    fn put_ids(
        &mut self,
        program: &mut Program,
        layout: &DecoderIo,
        ids: &[Vec<i64>],
        mask: Option<&[Vec<i64>]>,
    ) -> Result<(), RuntimeError> {
        let shape = [ids.len(), ids.first().map_or(0, Vec::len)];
        let mut inputs = match self.inputs.take().filter(|inputs| inputs.ids.tensor.shape() == shape) {
            Some(inputs) => inputs,
            None => Inputs {
                ids: Integers::new(program, IDS, layout.ids, shape)?,
                positions: layout
                    .positions
                    .map(|dtype| Integers::new(program, POSITIONS, dtype, shape))
                    .transpose()?,
                last: Integers::new(program, LAST, DType::I64, [shape[0], 1])?,
            },
        };
        inputs.ids.put(ids)?;
        inputs.last.put(&last_tokens(shape, mask))?;
        if let Some(integers) = &mut inputs.positions {
            let marks = mask.map_or_else(|| self.fed.ones(shape[1]), <[_]>::to_vec);
            integers.put(&positions(&self.fed.seen, &marks))?;
        }
        for integers in
            [Some(&inputs.ids), inputs.positions.as_ref(), Some(&inputs.last)].into_iter().flatten()
        {
            program.bind_input(integers.name, &integers.tensor)?;
        }
        self.inputs = Some(inputs);
        Ok(())
    }

    /// Marks for so many columns. Where nothing is padding, they are a part of a buffer for the most that may come.
    fn put_mask(
        &mut self,
        program: &mut Program,
        layout: &DecoderIo,
        [columns, most]: [usize; 2],
        mask: Option<&[Vec<i64>]>,
    ) -> Result<(), RuntimeError> {
        let Some(dtype) = layout.mask else { return Ok(()) };
        let batch = self.fed.seen.len();
        let shape = [batch, columns];
        if let Some(mask) = mask {
            let tensor = program.allocate(dtype, &shape)?;
            tensor.write(&HostTensor::from_i64(&shape, &mask.concat())?)?;
            return program.bind_input(MASK, &tensor);
        }
        let ones = match self.ones.take().filter(|ones| ones.shape()[0] >= batch * columns) {
            Some(ones) => ones,
            None => {
                let ones = program.allocate(dtype, &[batch * most])?;
                ones.write(&HostTensor::from_i64(&[batch * most], &vec![1; batch * most])?)?;
                ones
            }
        };
        program.bind_input_part(MASK, &ones, 0, &shape)?;
        self.ones = Some(ones);
        Ok(())
    }
}

/// What the graph takes as [`LAST`]: of a row without a token it is the first place, whose logits nobody reads.
fn last_tokens([rows, columns]: [usize; 2], mask: Option<&[Vec<i64>]>) -> Vec<Vec<i64>> {
    let column = |row: usize| match mask {
        Some(mask) => mask[row].iter().rposition(|mark| *mark == 1).unwrap_or(0),
        None => columns.saturating_sub(1),
    };
    (0..rows).map(|row| vec![(row * columns + column(row)) as i64]).collect()
}

/// A tensor with zeros after its numbers along the axis in which it is shorter.
fn padded_to(tensor: &HostTensor, shape: &[usize]) -> Result<HostTensor, RuntimeError> {
    let Some(axis) = (0..shape.len()).find(|axis| tensor.shape()[*axis] < shape[*axis]) else {
        return Ok(tensor.clone());
    };
    let mut missing = shape.to_vec();
    missing[axis] -= tensor.shape()[axis];
    Ok(HostTensor::concat(axis, &[tensor, &HostTensor::zeros(tensor.dtype(), &missing)?])?)
}
