//! Serving from memory that is bound once: a graph that takes prompts a segment at a time and one that takes one
//! token per row, both over one copy of the weights and of the state, which stay where they are computed with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::decoder::{DecoderState, History, positions};
use crate::decoder_layout::{IDS, LOGITS, MASK, PAST, POSITIONS, PRESENT};
use crate::error::RuntimeError;
use crate::ort_runtime::OrtRuntime;
use crate::program::{DeviceTensor, Program};
use crate::session::{Device, DimSpec, Io, LoadOptions};
use crate::tensor::{Dtype, HostTensor};
use crate::weight_file;

pub(crate) const PREFILL: &str = "prefill.onnx";
pub(crate) const DECODE: &str = "decode.onnx";
/// The graphs' output of the likeliest next tokens.
const NEXT: &str = "next";

/// A bundle in bound memory.
#[derive(Debug)]
pub(crate) struct Bound {
    bundle: PathBuf,
    runtime: OrtRuntime,
    /// Its profile is a directory.
    options: LoadOptions,
    /// Reads what the graphs declare, and owns the memory.
    home: Program,
    weights: Weights,
    segment: usize,
    run: Run,
}

/// What the graphs read of the bundle's weights, by the names they have for it.
#[derive(Debug)]
struct Weights {
    bundle: PathBuf,
    there: BTreeMap<String, DeviceTensor>,
}

impl Weights {
    /// Loads those of a graph's inputs that are weights and not there yet.
    fn load(&mut self, home: &Program, inputs: &[Io]) -> Result<(), RuntimeError> {
        let is_new = |io: &&Io| is_weight(&io.name) && !self.there.contains_key(&io.name);
        let names: Vec<Io> = inputs.iter().filter(is_new).cloned().collect();
        let there = &mut self.there;
        weight_file::read(&self.bundle, &names, &mut |name, tensor| {
            let place = home.allocate(tensor.dtype(), tensor.shape())?;
            place.write(tensor)?;
            there.insert(name.to_owned(), place);
            Ok(())
        })
    }
}

/// The sequences of one start.
#[derive(Debug)]
struct Run {
    prefill: Option<Step>,
    decode: Step,
    states: Vec<State>,
    seen: Vec<i64>,
    columns: usize,
    last: Last,
}

/// One state. Decoding reads and writes `now` in place; a prompt's segments go to and fro, and end there.
#[derive(Debug)]
struct State {
    rest: String,
    now: DeviceTensor,
    other: DeviceTensor,
}

/// Where the logits behind each row's last token are.
#[derive(Debug)]
enum Last {
    Nothing,
    Prefill,
    Decode,
    /// Rows that ended in several segments, f32 `[batch, vocabulary]`.
    Host(HostTensor),
}

/// A graph for so many tokens per row, and the memory it reads and writes besides states.
#[derive(Debug)]
struct Step {
    program: Program,
    ids: Integers,
    mask: Option<Integers>,
    positions: Option<Integers>,
    next: DeviceTensor,
    logits: DeviceTensor,
}

/// An integer input, which is copied to the device only where it is not what is there already.
#[derive(Debug)]
struct Integers {
    tensor: DeviceTensor,
    there: Vec<i64>,
}

impl Bound {
    pub(crate) fn open(bundle: &Path, options: &LoadOptions, segment: usize) -> Result<Self, RuntimeError> {
        if segment == 0 {
            return Err(bad("segment", "0 tokens at a time were asked for, expected at least 1"));
        }
        let runtime = OrtRuntime::new()?;
        // Only what it declares is read, as the dims of a run are not known yet.
        let plain = LoadOptions { optimize: false, cuda_graph: false, profile: None, ..options.clone() };
        let home = Program::load(&runtime, &bundle.join(DECODE), &plain)?;
        let mut weights = Weights { bundle: bundle.to_path_buf(), there: BTreeMap::new() };
        let (bundle, options) = (bundle.to_path_buf(), options.clone());
        let run = Run::new(&bundle, &runtime, &options, &home, &mut weights, 1)?;
        Ok(Self { bundle, runtime, options, home, weights, segment, run })
    }

    pub(crate) fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        if batch == 0 {
            return Err(bad("batch", "0 sequences were asked for, expected at least 1"));
        }
        if batch == self.batch() {
            return self.run.forget();
        }
        self.run =
            Run::new(&self.bundle, &self.runtime, &self.options, &self.home, &mut self.weights, batch)?;
        Ok(())
    }

    pub(crate) fn batch(&self) -> usize {
        self.run.seen.len()
    }

    pub(crate) fn columns(&self) -> usize {
        self.run.columns
    }

    pub(crate) fn state_bytes(&self) -> usize {
        let bytes = |s: &State| s.now.shape().iter().product::<usize>() * s.now.dtype().size();
        self.run.states.iter().map(bytes).sum()
    }

    /// Feeds prompts behind what was fed, and returns the likeliest next tokens.
    pub(crate) fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        self.check_rows(prompts.len())?;
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if self.run.prefill.is_none() {
            let (batch, segment) = (self.batch(), self.segment);
            let options = LoadOptions { cuda_graph: false, ..self.options.clone() };
            let path = self.bundle.join(PREFILL);
            let step =
                Step::load(&path, &self.runtime, &options, &self.home, &mut self.weights, [batch, segment])?;
            self.run.prefill = Some(step);
        }
        self.run.feed_segments(prompts, self.segment, width)
    }

    pub(crate) fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        self.check_rows(tokens.len())?;
        let run = &mut self.run;
        let rows: Vec<Vec<i64>> = tokens.iter().map(|token| vec![*token]).collect();
        let ones = vec![vec![1]; rows.len()];
        run.decode.feed(&rows, &ones, &run.seen)?;
        run.seen.iter_mut().for_each(|seen| *seen += 1);
        run.columns += 1;
        run.last = Last::Decode;
        let next = run.decode.next.read()?.to_i64()?;
        run.decode.ids.found(&run.decode.next, &next);
        Ok(next)
    }

    /// Logits behind each row's last token, f32 `[batch, vocabulary]`.
    pub(crate) fn logits(&self) -> Result<HostTensor, RuntimeError> {
        let read = |step: &Step| flat(&step.logits.read()?);
        match (&self.run.last, &self.run.prefill) {
            (Last::Host(logits), _) => Ok(logits.clone()),
            (Last::Decode, _) => read(&self.run.decode),
            (Last::Prefill, Some(step)) => read(step),
            _ => Err(bad("logits", "no token was fed yet")),
        }
    }

    pub(crate) fn state(&self) -> Result<DecoderState, RuntimeError> {
        let read = |s: &State| Ok((format!("{PAST}{}", s.rest), s.now.read()?));
        let tensors = self.run.states.iter().map(read).collect::<Result<_, RuntimeError>>()?;
        let (seen, columns) = (self.run.seen.clone(), self.run.columns);
        Ok(DecoderState { tensors, history: History { mask: vec![Vec::new(); seen.len()], seen, columns } })
    }

    /// Goes on from a state; an error leaves all as it was.
    pub(crate) fn set_state(
        &mut self,
        state: &DecoderState,
        logits: Option<HostTensor>,
    ) -> Result<(), RuntimeError> {
        let history = &state.history;
        let batch = history.seen.len();
        if batch == 0 || history.mask.iter().any(|row| !row.is_empty()) {
            return Err(bad("state", "it is that of a cache that grows, or of no rows"));
        }
        let mut run =
            Run::new(&self.bundle, &self.runtime, &self.options, &self.home, &mut self.weights, batch)?;
        let names = run.states.iter().map(|s| format!("{PAST}{}", s.rest));
        if !names.eq(state.tensors.iter().map(|(name, _)| name.clone())) {
            return Err(bad("state", "its tensors are not those of this model"));
        }
        for (own, (_, tensor)) in run.states.iter().zip(&state.tensors) {
            own.now.write(tensor)?;
        }
        (run.seen, run.columns) = (history.seen.clone(), history.columns);
        run.last = logits.map_or(Last::Nothing, Last::Host);
        self.run = run;
        Ok(())
    }

    fn check_rows(&self, rows: usize) -> Result<(), RuntimeError> {
        if rows == self.batch() {
            return Ok(());
        }
        Err(bad("input_ids", format!("{rows} rows were given, {} were started", self.batch())))
    }
}

impl Run {
    fn new(
        bundle: &Path,
        runtime: &OrtRuntime,
        options: &LoadOptions,
        home: &Program,
        weights: &mut Weights,
        batch: usize,
    ) -> Result<Self, RuntimeError> {
        let mut decode = Step::load(&bundle.join(DECODE), runtime, options, home, weights, [batch, 1])?;
        let mut states = Vec::new();
        for io in home.inputs() {
            let Some(rest) = io.name.strip_prefix(PAST) else { continue };
            let shape = state_shape(io, batch)?;
            let (now, other) = (home.allocate(io.dtype, &shape)?, home.allocate(io.dtype, &shape)?);
            decode.program.bind_input(&io.name, &now)?;
            decode.program.bind_output(&format!("{PRESENT}{rest}"), &now)?;
            states.push(State { rest: rest.to_owned(), now, other });
        }
        let seen = vec![0; batch];
        let mut run = Self { prefill: None, decode, states, seen, columns: 0, last: Last::Nothing };
        if options.cuda_graph && options.device != Device::Cpu {
            // A graph that is recorded runs several times when it runs first, which a state must not see.
            run.decode.program.run()?;
            run.decode.ids.clear()?;
            run.forget()?;
        }
        Ok(run)
    }

    /// Back to empty states.
    fn forget(&mut self) -> Result<(), RuntimeError> {
        for tensor in self.states.iter().flat_map(|state| [&state.now, &state.other]) {
            tensor.write(&HostTensor::zeros(tensor.dtype(), tensor.shape())?)?;
        }
        self.seen.fill(0);
        (self.columns, self.last) = (0, Last::Nothing);
        Ok(())
    }

    fn feed_segments(
        &mut self,
        prompts: &[Vec<i64>],
        segment: usize,
        width: usize,
    ) -> Result<Vec<i64>, RuntimeError> {
        let Some(step) = &mut self.prefill else { return Ok(Vec::new()) };
        let count = width.div_ceil(segment);
        // The last segment must end in `now`, which decoding is bound to. Before the first token both are zero.
        let mut to_now = count % 2 == 1;
        if to_now && self.columns > 0 {
            for state in &self.states {
                state.other.write(&state.now.read()?)?;
            }
        }
        let mut next = vec![0; prompts.len()];
        let mut kept: Option<Vec<Vec<f32>>> = None;
        for start in (0..count * segment).step_by(segment) {
            for state in &self.states {
                let (from, to) = if to_now { (&state.other, &state.now) } else { (&state.now, &state.other) };
                step.program.bind_input(&format!("{PAST}{}", state.rest), from)?;
                step.program.bind_output(&format!("{PRESENT}{}", state.rest), to)?;
            }
            let (ids, mask) = cut(prompts, start, segment);
            step.feed(&ids, &mask, &self.seen)?;
            to_now = !to_now;
            for (seen, row) in self.seen.iter_mut().zip(&mask) {
                *seen += row.iter().sum::<i64>();
            }
            let ends: Vec<usize> = (0..prompts.len())
                .filter(|row| (start + 1..=start + segment).contains(&prompts[*row].len()))
                .collect();
            if ends.is_empty() {
                continue;
            }
            let found = step.next.read()?.to_i64()?;
            ends.iter().for_each(|row| next[*row] = found[*row]);
            if ends.len() < prompts.len() {
                let logits = flat(&step.logits.read()?)?;
                let wide = logits.shape()[1];
                let values = logits.to_f32()?;
                let kept = kept.get_or_insert_with(|| vec![Vec::new(); prompts.len()]);
                ends.iter().for_each(|row| kept[*row] = values[row * wide..(row + 1) * wide].to_vec());
            }
        }
        self.columns += width;
        self.last = match kept {
            Some(rows) => Last::Host(HostTensor::from_f32(&[rows.len(), rows[0].len()], &rows.concat())?),
            None => Last::Prefill,
        };
        Ok(next)
    }
}

impl Step {
    fn load(
        path: &Path,
        runtime: &OrtRuntime,
        options: &LoadOptions,
        home: &Program,
        weights: &mut Weights,
        shape: [usize; 2],
    ) -> Result<Self, RuntimeError> {
        let options = LoadOptions { dims: named_dims(home.inputs(), shape), ..options.clone() };
        let directory = options.profile.clone();
        let options = options.profiled(directory.as_deref(), path);
        let mut program = Program::load(runtime, path, &options)?;
        let taken: Vec<Io> = program.inputs().to_vec();
        weights.load(home, &taken)?;
        let next = home.allocate(Dtype::I64, &[shape[0], 1])?;
        let mut integers = BTreeMap::new();
        for io in &taken {
            if let Some(weight) = weights.there.get(&io.name) {
                program.bind_input(&io.name, weight)?;
            } else if [IDS, MASK, POSITIONS].contains(&io.name.as_str()) {
                // One token per row is read where the one before it was found.
                let is_next = io.name == IDS && (io.dtype, shape[1]) == (Dtype::I64, 1);
                let tensor = if is_next { next.clone() } else { home.allocate(io.dtype, &shape)? };
                program.bind_input(&io.name, &tensor)?;
                integers.insert(io.name.clone(), Integers { tensor, there: vec![0; shape[0] * shape[1]] });
            }
        }
        let ids = integers.remove(IDS).ok_or_else(|| misfit(IDS, "the graph has no such input"))?;
        let (mask, positions) = (integers.remove(MASK), integers.remove(POSITIONS));
        let out = |name: &str, shape: &[usize], program: &mut Program| {
            let io = program.outputs().iter().find(|io| io.name == name).cloned();
            let io = io.ok_or_else(|| misfit(name, "the graph has no such output"))?;
            let tensor = home.allocate(io.dtype, shape)?;
            program.bind_output(name, &tensor)?;
            Ok::<_, RuntimeError>(tensor)
        };
        let vocabulary = vocabulary(&program)?;
        program.bind_output(NEXT, &next)?;
        let logits = out(LOGITS, &[shape[0], 1, vocabulary], &mut program)?;
        Ok(Self { program, ids, mask, positions, next, logits })
    }

    fn feed(&mut self, ids: &[Vec<i64>], mask: &[Vec<i64>], seen: &[i64]) -> Result<(), RuntimeError> {
        self.ids.put(ids)?;
        if let Some(integers) = &mut self.mask {
            integers.put(mask)?;
        }
        if let Some(integers) = &mut self.positions {
            integers.put(&positions(seen, mask))?;
        }
        let run = self.program.run();
        if self.ids.tensor.is_same(&self.next) {
            self.ids.there.clear();
        }
        run
    }
}

impl Integers {
    fn put(&mut self, rows: &[Vec<i64>]) -> Result<(), RuntimeError> {
        let values = rows.concat();
        if values == self.there {
            return Ok(());
        }
        let shape = self.tensor.shape();
        let host = match self.tensor.dtype() {
            Dtype::I32 => HostTensor::from_i32(shape, &values.iter().map(|v| *v as i32).collect::<Vec<_>>())?,
            _ => HostTensor::from_i64(shape, &values)?,
        };
        self.tensor.write(&host)?;
        self.there = values;
        Ok(())
    }

    /// A run wrote `values` to `tensor`, which may be this one.
    fn found(&mut self, tensor: &DeviceTensor, values: &[i64]) {
        if self.tensor.is_same(tensor) {
            self.there = values.to_vec();
        }
    }

    fn clear(&mut self) -> Result<(), RuntimeError> {
        self.there.fill(0);
        self.tensor.write(&HostTensor::zeros(self.tensor.dtype(), self.tensor.shape())?)
    }
}

/// Each row's tokens of one segment, and which of them are tokens: zeros behind the row's end.
fn cut(prompts: &[Vec<i64>], start: usize, segment: usize) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    let part = |row: &Vec<i64>| {
        let end = row.len().min(start + segment);
        let mut ids = row[start.min(end)..end].to_vec();
        let mut mask = vec![1; ids.len()];
        ids.resize(segment, 0);
        mask.resize(segment, 0);
        (ids, mask)
    };
    prompts.iter().map(part).unzip()
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

fn vocabulary(program: &Program) -> Result<usize, RuntimeError> {
    let logits = program.outputs().iter().find(|io| io.name == LOGITS);
    match logits.and_then(|io| io.shape.last()) {
        Some(DimSpec::Fixed(size)) => Ok(*size),
        _ => Err(misfit(LOGITS, "its last dim is no number")),
    }
}

fn flat(logits: &HostTensor) -> Result<HostTensor, RuntimeError> {
    let shape = [logits.shape()[0], logits.shape()[2]];
    Ok(HostTensor::from_f32(&shape, &logits.to_f32()?)?)
}

fn misfit(place: &str, reason: &str) -> RuntimeError {
    RuntimeError::NotADecoder { place: format!("`{place}`"), reason: reason.to_owned() }
}

fn bad(place: &'static str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::BadCall { place, reason: reason.into() }
}
