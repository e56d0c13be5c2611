//! Serving from memory that is bound once: a graph that takes prompts a segment at a time and one that takes one
//! token per row, both over one copy of the weights and of the state, which stay where they are computed with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::decode::decoder::Decoder;
use crate::decode::integers::Integers;
use crate::decode::layout::vocabulary;
use crate::decode::ring::arranged;
use crate::decode::rows::{ending, positions, segment as segment_of, width};
use crate::decode::state::{DecoderState, History, fit};
use crate::decode::weight_file;
use crate::ort::program::{DeviceTensor, Program};
use crate::ort::runtime::OrtRuntime;
use crate::session::error::{RuntimeError, bad_call, misfit};
use crate::session::tensor::HostTensor;
use crate::session::{DimSpec, Io, LoadOptions};
use dijiang_format::dtype::DType;
use dijiang_format::files::{DECODE, PREFILL};
use dijiang_format::names::{IDS, LOGITS, MASK, NEXT, PAST, POSITIONS, PRESENT, StatePart};
use dijiang_format::widths::PREFILL_CHUNK;

/// A bundle in bound memory.
#[derive(Debug)]
pub(crate) struct BoundDecoder {
    shared: SharedGraphs,
    /// Prompt tokens fed at a time, at most.
    segment: usize,
    /// Prompt tokens that may still be fed one by one in place of loading a graph for segments.
    singly: usize,
    run: Run,
}

/// What the graphs of a bundle share.
#[derive(Debug)]
struct SharedGraphs {
    bundle: PathBuf,
    runtime: OrtRuntime,
    /// Its profile is a directory.
    options: LoadOptions,
    /// Reads what the graphs declare, and owns the memory.
    program: Program,
    weights: BTreeMap<(String, DType), Weight>,
}

/// The sequences of one start.
#[derive(Debug)]
struct Run {
    prompts: Option<Prompts>,
    decode: BoundGraph,
    states: Vec<BoundState>,
    seen: Vec<i64>,
    columns: usize,
    last: Last,
}

/// One state, which decoding reads and writes in place.
#[derive(Debug)]
struct BoundState {
    rest: String,
    tensor: DeviceTensor,
}

/// What prompts are fed with. Their segments go to and fro between the states and others of the same shapes, as a
/// graph of many operators may write a state before it has read it all, and end in the states.
#[derive(Debug)]
struct Prompts {
    others: Vec<DeviceTensor>,
    /// By the length of a segment. There are few, and all together take less than the longest does twice.
    steps: BTreeMap<usize, BoundGraph>,
}

/// Prompt tokens that are fed one by one, where few prompts are to come, before a graph for segments is loaded: it takes as
/// long to load as thousands of single tokens take to run.
const SINGLY: usize = 1024;

/// The shortest segment worth a graph of its own: shorter ones take a GPU as long.
const SHORTEST: usize = 256;
/// What a segment costs besides its tokens, in tokens: 3.7 ms of small kernels, where a token takes 3.6 µs.
const SEGMENT_COST: usize = 1024;

/// The two programs of a segment, and decoding's only one.
const TO_OTHERS: usize = 0;
const TO_STATES: usize = 1;
const IN_PLACE: usize = 0;

/// Where the logits after each row's last token are.
#[derive(Debug)]
enum Last {
    Nothing,
    /// Of segments this long.
    Prefill(usize),
    Decode,
    /// Rows that ended in several segments, f32 `[batch, vocabulary]`.
    Host(HostTensor),
}

/// A weight where it is computed with, alone or as a part of what a graph reads as one.
#[derive(Debug)]
struct Weight {
    tensor: DeviceTensor,
    /// Its first number there.
    at: usize,
    shape: Vec<usize>,
}

impl Weight {
    /// The whole tensor and its parts, by name and element type: what a graph reads as one is of one type.
    fn all(
        name: &str,
        tensor: &DeviceTensor,
        parts: &[weight_file::StoredPart],
    ) -> Vec<((String, DType), Self)> {
        let there = |at: usize, shape: &[usize]| Self { tensor: tensor.clone(), at, shape: shape.to_vec() };
        let named = |name: &str| (name.to_owned(), tensor.dtype());
        let mut all = vec![(named(name), there(0, tensor.shape()))];
        let mut at = 0;
        for part in parts.iter().filter(|part| part.name != name) {
            all.push((named(&part.name), there(at, &part.shape)));
            at += part.shape.iter().product::<usize>();
        }
        all
    }
}

/// A graph for so many tokens per row.
#[derive(Debug)]
struct BoundGraph {
    /// By where states come from and go to; all else is the same.
    programs: Vec<Program>,
    memory: Memory,
}

/// What a graph reads and writes besides weights and states.
#[derive(Debug)]
struct Memory {
    ids: Integers,
    mask: Option<Integers>,
    positions: Option<Integers>,
    next: DeviceTensor,
    logits: DeviceTensor,
}

impl BoundDecoder {
    /// `segment` is how many prompt tokens are fed at a time, at most; `few_prompts` has short ones fed one by one at first.
    pub(crate) fn open(
        bundle: &Path,
        options: &LoadOptions,
        segment: usize,
        few_prompts: bool,
    ) -> Result<Self, RuntimeError> {
        if segment == 0 {
            return Err(bad_call("segment", "0 tokens at a time were asked for, expected at least 1"));
        }
        let mut shared = SharedGraphs::open(bundle, options)?;
        let run = Run::new(&mut shared, 1)?;
        Ok(Self { shared, segment, singly: if few_prompts { SINGLY } else { 0 }, run })
    }

    /// Whether prompts are fed one token of each at a time, which rows of one length can be.
    fn feeds_singly(&self, prompts: &[Vec<i64>], width: usize, segment: usize) -> bool {
        let is_there = self.run.prompts.as_ref().is_some_and(|ready| ready.steps.contains_key(&segment));
        !is_there && width <= self.singly && prompts.iter().all(|prompt| prompt.len() == width)
    }

    /// Returns the likeliest tokens after the last.
    fn feed_singly(&mut self, prompts: &[Vec<i64>], width: usize) -> Result<Vec<i64>, RuntimeError> {
        self.singly -= width;
        let mut next = Vec::new();
        for at in 0..width {
            let column: Vec<i64> = prompts.iter().map(|prompt| prompt[at]).collect();
            next = self.decode(&column)?;
        }
        Ok(next)
    }

    fn check_rows(&self, rows: usize) -> Result<(), RuntimeError> {
        if rows == self.batch() {
            return Ok(());
        }
        Err(bad_call("input_ids", format!("{rows} rows were given, {} were started", self.batch())))
    }
}

impl Decoder for BoundDecoder {
    fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        if batch == 0 {
            return Err(bad_call("batch", "0 sequences were asked for, expected at least 1"));
        }
        if batch == self.batch() {
            return self.run.forget();
        }
        self.run = Run::new(&mut self.shared, batch)?;
        Ok(())
    }

    fn batch(&self) -> usize {
        self.run.seen.len()
    }

    fn columns(&self) -> usize {
        self.run.columns
    }

    fn state_bytes(&self) -> usize {
        let bytes = |s: &BoundState| s.tensor.shape().iter().product::<usize>() * s.tensor.dtype().size();
        self.run.states.iter().map(bytes).sum()
    }

    fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        self.check_rows(prompts.len())?;
        let width = width(prompts);
        let segment = length_for(width, self.segment);
        if width > 0 && self.feeds_singly(prompts, width, segment) {
            return self.feed_singly(prompts, width);
        }
        self.run.make_ready(&mut self.shared, segment)?;
        self.run.feed_segments(prompts, segment, width)
    }

    fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        self.check_rows(tokens.len())?;
        let run = &mut self.run;
        let rows: Vec<Vec<i64>> = tokens.iter().map(|token| vec![*token]).collect();
        let ones = vec![vec![1]; rows.len()];
        run.decode.feed(IN_PLACE, &rows, &ones, &run.seen)?;
        run.seen.iter_mut().for_each(|seen| *seen += 1);
        run.columns += 1;
        run.last = Last::Decode;
        let memory = &mut run.decode.memory;
        let next = memory.next.read()?.to_i64()?;
        memory.ids.found(&memory.next, &next);
        Ok(next)
    }

    fn logits(&self) -> Result<HostTensor, RuntimeError> {
        let read = |step: &BoundGraph| flat(&step.memory.logits.read()?);
        match (&self.run.last, &self.run.prompts) {
            (Last::Host(logits), _) => Ok(logits.clone()),
            (Last::Decode, _) => read(&self.run.decode),
            (Last::Prefill(segment), Some(Prompts { steps, .. })) if steps.contains_key(segment) => {
                read(&steps[segment])
            }
            _ => Err(bad_call("logits", "no token was fed yet")),
        }
    }

    fn state(&self) -> Result<DecoderState, RuntimeError> {
        let read = |s: &BoundState| Ok((format!("{PAST}{}", s.rest), s.tensor.read()?));
        let tensors = self.run.states.iter().map(read).collect::<Result<_, RuntimeError>>()?;
        let (seen, columns) = (self.run.seen.clone(), self.run.columns);
        Ok(DecoderState { tensors, history: History { mask: vec![Vec::new(); seen.len()], seen, columns } })
    }

    fn set_state(&mut self, state: DecoderState, logits: Option<HostTensor>) -> Result<(), RuntimeError> {
        let history = &state.history;
        let batch = history.seen.len();
        if batch == 0 || history.mask.iter().any(|row| !row.is_empty()) {
            return Err(bad_call("state", "it is that of a cache that grows, or of no rows"));
        }
        let mut run = Run::new(&mut self.shared, batch)?;
        let wanted = |own: &BoundState| (format!("{PAST}{}", own.rest), own.tensor.shape().to_vec());
        let wanted: Vec<_> = run.states.iter().map(wanted).collect();
        let tensors = arranged(state.tensors, &wanted)?;
        if !wanted.iter().map(|(name, _)| name).eq(tensors.iter().map(|(name, _)| name)) {
            return Err(bad_call("state", "its tensors are not those of this model"));
        }
        for (own, (_, tensor)) in run.states.iter().zip(&tensors) {
            own.tensor.write(&fit(tensor, own.tensor.shape())?)?;
        }
        (run.seen, run.columns) = (history.seen.clone(), history.columns);
        run.last = logits.map_or(Last::Nothing, Last::Host);
        self.run = run;
        Ok(())
    }

    /// The state keeps its size, so that only the count changes.
    fn skip_to(&mut self, columns: usize) -> Result<(), RuntimeError> {
        self.run.seen.fill(columns as i64);
        self.run.columns = columns;
        Ok(())
    }
}

impl SharedGraphs {
    fn open(bundle: &Path, options: &LoadOptions) -> Result<Self, RuntimeError> {
        let runtime = OrtRuntime::new()?;
        // Only what it declares is read, as the dims of a run are not known yet.
        let plain = LoadOptions { optimize: false, cuda_graph: false, profile: None, ..options.clone() };
        let program = Program::load(&runtime, &bundle.join(DECODE), &plain)?;
        let (bundle, options) = (bundle.to_path_buf(), options.clone());
        Ok(Self { bundle, runtime, options, program, weights: BTreeMap::new() })
    }

    /// Loads a graph for so many rows of so many tokens, and those of its weights that are not there yet.
    fn load(&mut self, file: &str, shape: [usize; 2]) -> Result<Program, RuntimeError> {
        let program = self.load_graph(file, shape)?;
        let is_new =
            |io: &&Io| is_weight(&io.name) && !self.weights.contains_key(&(io.name.clone(), io.dtype));
        let names: Vec<Io> = program.inputs().iter().filter(is_new).cloned().collect();
        weight_file::read(&self.bundle, &names, &mut |name, tensor, parts| {
            let there = self.program.allocate(tensor.dtype(), tensor.shape())?;
            there.write(tensor)?;
            self.weights.extend(Weight::all(name, &there, parts));
            Ok(())
        })?;
        Ok(program)
    }

    fn load_graph(&self, file: &str, shape: [usize; 2]) -> Result<Program, RuntimeError> {
        let path = self.bundle.join(file);
        let dims = named_dims(self.program.inputs(), shape);
        let states = states_of_heads(self.program.inputs(), shape[0]);
        let options = LoadOptions { dims, states, ..self.options.clone() };
        let options = options.profiled(self.options.profile.as_deref(), &path);
        match Program::load(&self.runtime, &path, &options) {
            Err(error) if options.records() => {
                tracing::info!("{file} runs kernel by kernel, as it cannot be recorded: {error}");
                Program::load(&self.runtime, &path, &LoadOptions { cuda_graph: false, ..options })
            }
            loaded => loaded,
        }
    }

    fn states(&self, batch: usize) -> Result<Vec<BoundState>, RuntimeError> {
        let mut states = Vec::new();
        for io in self.program.inputs() {
            let Some(rest) = io.name.strip_prefix(PAST) else { continue };
            let tensor = self.program.allocate(io.dtype, &state_shape(io, batch)?)?;
            states.push(BoundState { rest: rest.to_owned(), tensor });
        }
        Ok(states)
    }
}

impl BoundState {
    fn bind(
        &self,
        program: &mut Program,
        from: &DeviceTensor,
        to: &DeviceTensor,
    ) -> Result<(), RuntimeError> {
        program.bind_input(&format!("{PAST}{}", self.rest), from)?;
        // A graph may cut the features of what it gives into blocks: the same numbers in a shape of their own.
        let name = format!("{PRESENT}{}", self.rest);
        let declared = program.outputs().iter().find(|io| io.name == name);
        let declared = declared.ok_or_else(|| misfit(&name, "the graph has no such output"))?;
        let shape = state_shape(declared, to.shape()[0])?;
        program.bind_output_part(&name, to, 0, &shape)
    }
}

impl Prompts {
    fn new(shared: &SharedGraphs, states: &[BoundState]) -> Result<Self, RuntimeError> {
        let other = |state: &BoundState| shared.program.allocate(state.tensor.dtype(), state.tensor.shape());
        let others = states.iter().map(other).collect::<Result<_, _>>()?;
        Ok(Self { others, steps: BTreeMap::new() })
    }

    fn load(
        &self,
        shared: &mut SharedGraphs,
        states: &[BoundState],
        shape: [usize; 2],
    ) -> Result<BoundGraph, RuntimeError> {
        let mut step = BoundGraph::load(shared, PREFILL, shape)?;
        // A graph that is recorded goes on with the addresses it was recorded with, so each direction is one.
        step.add_program(shared)?;
        for (state, other) in states.iter().zip(&self.others) {
            state.bind(&mut step.programs[TO_OTHERS], &state.tensor, other)?;
            state.bind(&mut step.programs[TO_STATES], other, &state.tensor)?;
        }
        Ok(step)
    }
}

impl Run {
    fn new(shared: &mut SharedGraphs, batch: usize) -> Result<Self, RuntimeError> {
        let states = shared.states(batch)?;
        let mut decode = BoundGraph::load(shared, DECODE, [batch, 1])?;
        let program = &mut decode.programs[IN_PLACE];
        states.iter().try_for_each(|state| state.bind(program, &state.tensor, &state.tensor))?;
        if program.is_recorded() {
            // A graph that is recorded runs several times when it runs first, which a state must not see.
            program.run()?;
            decode.memory.ids.clear()?;
            states.iter().try_for_each(|state| state.tensor.clear())?;
        }
        let seen = vec![0; batch];
        Ok(Self { prompts: None, decode, states, seen, columns: 0, last: Last::Nothing })
    }

    /// Back to empty states.
    fn forget(&mut self) -> Result<(), RuntimeError> {
        let others = self.prompts.iter().flat_map(|prompts| &prompts.others);
        self.states.iter().map(|state| &state.tensor).chain(others).try_for_each(DeviceTensor::clear)?;
        self.seen.fill(0);
        (self.columns, self.last) = (0, Last::Nothing);
        Ok(())
    }

    /// Loads the graph for segments of a length, unless it is there.
    fn make_ready(&mut self, shared: &mut SharedGraphs, segment: usize) -> Result<(), RuntimeError> {
        let prompts = match self.prompts.take() {
            Some(prompts) => prompts,
            None => Prompts::new(shared, &self.states)?,
        };
        let prompts = self.prompts.insert(prompts);
        if !prompts.steps.contains_key(&segment) {
            let step = prompts.load(shared, &self.states, [self.seen.len(), segment])?;
            prompts.steps.insert(segment, step);
        }
        Ok(())
    }

    fn feed_segments(
        &mut self,
        prompts: &[Vec<i64>],
        segment: usize,
        width: usize,
    ) -> Result<Vec<i64>, RuntimeError> {
        let ready = self.prompts.as_mut().map(|ready| (&ready.others, ready.steps.get_mut(&segment)));
        let Some((others, Some(step))) = ready else { return Ok(Vec::new()) };
        let count = width.div_ceil(segment);
        // The last segment must end where decoding begins. Before the first token both are zero.
        let mut direction = if count % 2 == 1 { TO_STATES } else { TO_OTHERS };
        if direction == TO_STATES && self.columns > 0 {
            for (state, other) in self.states.iter().zip(others) {
                other.write(&state.tensor.read()?)?;
            }
        }
        let mut next = vec![0; prompts.len()];
        let mut kept: Option<Vec<Vec<f32>>> = None;
        for start in (0..count * segment).step_by(segment) {
            let (ids, mask) = segment_of(prompts, start, segment);
            step.feed(direction, &ids, &mask, &self.seen)?;
            direction = if direction == TO_STATES { TO_OTHERS } else { TO_STATES };
            for (seen, row) in self.seen.iter_mut().zip(&mask) {
                *seen += row.iter().sum::<i64>();
            }
            let ends = ending(prompts, start, segment);
            if ends.is_empty() {
                continue;
            }
            let found = step.memory.next.read()?.to_i64()?;
            ends.iter().for_each(|row| next[*row] = found[*row]);
            if ends.len() < prompts.len() {
                let logits = flat(&step.memory.logits.read()?)?;
                let wide = logits.shape()[1];
                let values = logits.to_f32()?;
                let kept = kept.get_or_insert_with(|| vec![Vec::new(); prompts.len()]);
                ends.iter().for_each(|row| kept[*row] = values[row * wide..(row + 1) * wide].to_vec());
            }
        }
        self.columns += width;
        self.last = match kept {
            Some(rows) => Last::Host(HostTensor::from_f32(&[rows.len(), rows[0].len()], &rows.concat())?),
            None => Last::Prefill(segment),
        };
        Ok(next)
    }
}

impl BoundGraph {
    fn load(shared: &mut SharedGraphs, file: &str, shape: [usize; 2]) -> Result<Self, RuntimeError> {
        let mut program = shared.load(file, shape)?;
        let memory = Memory::new(shared, &program, file, shape)?;
        memory.bind(shared, &mut program)?;
        Ok(Self { programs: vec![program], memory })
    }

    /// The same graph once more, whose states are not bound yet.
    fn add_program(&mut self, shared: &SharedGraphs) -> Result<(), RuntimeError> {
        let mut program = self.programs[0].again()?;
        self.memory.bind(shared, &mut program)?;
        self.programs.push(program);
        Ok(())
    }

    fn feed(
        &mut self,
        direction: usize,
        ids: &[Vec<i64>],
        mask: &[Vec<i64>],
        seen: &[i64],
    ) -> Result<(), RuntimeError> {
        let memory = &mut self.memory;
        memory.ids.put(ids)?;
        if let Some(integers) = &mut memory.mask {
            integers.put(mask)?;
        }
        if let Some(integers) = &mut memory.positions {
            integers.put(&positions(seen, mask))?;
        }
        let run = self.programs[direction].run();
        if memory.ids.tensor.is_same(&memory.next) {
            memory.ids.there.clear();
        }
        run
    }
}

impl Memory {
    fn new(
        shared: &SharedGraphs,
        program: &Program,
        file: &str,
        shape: [usize; 2],
    ) -> Result<Self, RuntimeError> {
        let next = shared.program.allocate(DType::I64, &[shape[0], 1])?;
        let integers = |name: &'static str| {
            let Some(io) = program.inputs().iter().find(|io| io.name == name) else { return Ok(None) };
            // Decoding reads a token where the one before it was found.
            let is_next = (file, name, io.dtype) == (DECODE, IDS, DType::I64);
            let integers = match is_next {
                true => Integers::at(name, next.clone()),
                false => Integers::new(&shared.program, name, io.dtype, shape)?,
            };
            Ok::<_, RuntimeError>(Some(integers))
        };
        let ids = integers(IDS)?.ok_or_else(|| misfit(IDS, "the graph has no such input"))?;
        let (mask, positions) = (integers(MASK)?, integers(POSITIONS)?);
        let logits = program.outputs().iter().find(|io| io.name == LOGITS);
        let logits = logits.ok_or_else(|| misfit(LOGITS, "the graph has no such output"))?;
        let logits = shared.program.allocate(logits.dtype, &[shape[0], 1, vocabulary(logits)?])?;
        Ok(Self { ids, mask, positions, next, logits })
    }

    fn bind(&self, shared: &SharedGraphs, program: &mut Program) -> Result<(), RuntimeError> {
        for io in program.inputs().to_vec() {
            let tensor = match io.name.as_str() {
                IDS => Some(&self.ids.tensor),
                MASK => self.mask.as_ref().map(|integers| &integers.tensor),
                POSITIONS => self.positions.as_ref().map(|integers| &integers.tensor),
                name => {
                    if let Some(weight) = shared.weights.get(&(name.to_owned(), io.dtype)) {
                        program.bind_input_part(name, &weight.tensor, weight.at, &weight.shape)?;
                    }
                    continue;
                }
            };
            tensor.map_or(Ok(()), |tensor| program.bind_input(&io.name, tensor))?;
        }
        program.bind_output(NEXT, &self.next)?;
        program.bind_output(LOGITS, &self.logits)
    }
}

/// The states of heads in the layer that has the most of them, `[batch, heads, features, width]` each, over all rows.
fn states_of_heads(inputs: &[Io], rows: usize) -> Option<usize> {
    let heads =
        inputs.iter().filter(|io| StatePart::Sums.is_past(&io.name)).filter_map(|io| match io.shape.get(1) {
            Some(DimSpec::Fixed(heads)) if io.shape.len() == 4 => Some(heads * rows),
            _ => None,
        });
    heads.max()
}

/// The length of the segments of a prompt, whole chunks or less than one: of the longest and the powers of two below it,
/// the one that takes the least time.
fn length_for(width: usize, longest: usize) -> usize {
    let chunk = PREFILL_CHUNK as usize;
    let longest = if longest > chunk { longest.next_multiple_of(chunk) } else { longest };
    let powers = std::iter::successors(Some(SHORTEST), |length| Some(2 * length));
    let mut lengths: Vec<usize> = powers.take_while(|length| *length < longest).chain([longest]).collect();
    // The longer of two that take as long.
    lengths.reverse();
    lengths
        .into_iter()
        .min_by_key(|length| width.div_ceil(*length) * (length + SEGMENT_COST))
        .unwrap_or(longest)
}

fn is_weight(name: &str) -> bool {
    ![IDS, MASK, POSITIONS].contains(&name) && !name.starts_with(PAST)
}

/// The names of the open dims of `[batch, tokens]`, in whatever words the graph has for them.
fn named_dims(inputs: &[Io], shape: [usize; 2]) -> Vec<(String, usize)> {
    let integers = inputs.iter().filter(|io| [IDS, MASK, POSITIONS].contains(&io.name.as_str()));
    let all = integers.flat_map(|io| io.shape.iter().zip(shape));
    let mut dims: Vec<(String, usize)> = Vec::new();
    for (dim, size) in all {
        if let DimSpec::Dynamic(Some(name)) = dim
            && dims.iter().all(|(known, _)| known != name)
        {
            dims.push((name.clone(), size));
        }
    }
    dims
}

fn state_shape(io: &Io, batch: usize) -> Result<Vec<usize>, RuntimeError> {
    let size = |(axis, dim): (usize, &DimSpec)| match dim {
        _ if axis == 0 => Ok(batch),
        DimSpec::Fixed(size) => Ok(*size),
        DimSpec::Dynamic(_) => Err(misfit(&io.name, &format!("its shape is {}", io.shape_text()))),
    };
    io.shape.iter().enumerate().map(size).collect()
}

fn flat(logits: &HostTensor) -> Result<HostTensor, RuntimeError> {
    let shape = [logits.shape()[0], logits.shape()[2]];
    Ok(HostTensor::from_f32(&shape, &logits.to_f32()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_long_and_seldom_padded() {
        let lengths = [1, 256, 257, 1000, 4096, 4097, 9000, 1_000_000].map(|width| length_for(width, 8192));
        assert_eq!(lengths, [256, 256, 512, 1024, 4096, 8192, 4096, 8192]);
        assert_eq!([1, 300].map(|width| length_for(width, 50)), [50, 50], "less than a chunk as asked for");
        assert_eq!(length_for(1500, 1500), 1536, "whole chunks");
    }
}
