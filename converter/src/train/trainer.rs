//! A training run's graphs, loaded, and the vectors they work on.

use super::TrainError;
use super::data::Windows;
use super::metrics::Line;
use super::teacher::Teacher;
use super::weights::Weights;
use crate::bundle::replace::replace_file;
use crate::bundle::stored_file;
use crate::onnx::export::{ExportOptions, export};
use dijiang_format::dtype::DType;
use dijiang_format::target::PORTABLE_OPSET;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::Tensor;
use dijiang_passes::training::TrainingError;
use dijiang_passes::training::optimizer::{self, AdamW, Types};
use dijiang_passes::training::parameters::{
    FIRST_MOMENTS, GRADIENTS, Group, PARAMETERS, Parameter, ParameterLayout, Precision, READ, SECOND_MOMENTS,
};
use dijiang_passes::training::specialize::{Size, TOKENS};
use dijiang_passes::training::step::{self, Batches, StepOptions};
use dijiang_runtime::{
    Device, DeviceTensor, DimSpec, HostTensor, Io, LoadOptions, OrtRuntime, Program, RuntimeError,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The graph files of a run, in the bundle's directory `train`.
const STEP: &str = "gradients.onnx";
const STEP_ADDED: &str = "gradients_added.onnx";
const SQUARES: &str = "squares";
const ADAMW: &str = "adamw";
const EVALUATION: &str = "evaluation.onnx";

/// The vectors of each group that a run carries from step to step.
pub(super) const CARRIED: [&str; 3] = [PARAMETERS, FIRST_MOMENTS, SECOND_MOMENTS];

/// Defaults of a run.
pub const BATCH: u64 = 16;
pub const CONTEXT: u64 = 512;
pub const CLIP_NORM: f64 = 1.0;
pub const WEIGHT_DECAY: f64 = 0.0;
pub const NEW_RATE: f64 = 5.0;

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    pub size: Size,
    pub precision: Precision,
    pub device: Device,
    pub threads: Option<usize>,
    /// On a GPU: records the graphs of gradients once and launches their kernels all at once.
    pub cuda_graph: bool,
    /// Where ONNX Runtime's profiles of the graphs go.
    pub profile: Option<PathBuf>,
    pub optimizer: AdamW,
    /// Gradients above this norm are scaled down to it.
    pub clip_norm: f64,
    /// Micro-batches per step.
    pub accumulate: usize,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            size: Size { batch: BATCH, sequence: CONTEXT },
            precision: Precision::F32,
            device: Device::Cpu,
            threads: None,
            cuda_graph: true,
            profile: None,
            optimizer: AdamW {
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                weight_decay: WEIGHT_DECAY,
                new_rate: NEW_RATE,
            },
            clip_norm: CLIP_NORM,
            accumulate: 1,
        }
    }
}

impl TrainerOptions {
    pub(super) fn records(&self) -> bool {
        self.cuda_graph && self.device != Device::Cpu
    }

    /// How to load a graph.
    pub(super) fn load(&self, path: &Path, cuda_graph: bool) -> LoadOptions {
        LoadOptions {
            threads: self.threads,
            device: self.device,
            cuda_graph,
            // The graphs say themselves what is computed when, see `training::finish`.
            optimize: false,
            ..LoadOptions::default()
        }
        .profiled(self.profile.as_deref(), path)
    }

    fn step(&self, batches: Batches) -> StepOptions {
        StepOptions { size: self.size, precision: self.precision, batches, teacher: None }
    }

    /// The first batch of an update.
    fn first(&self) -> StepOptions {
        self.step(if self.accumulate > 1 { Batches::First } else { Batches::One })
    }

    fn types(&self, group: &Group) -> Types {
        Types { read: self.precision.of_group(group), gradients: self.first().gradient_type(group) }
    }
}

/// What a step measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean over the micro-batches.
    pub loss: f64,
    /// The same of the divergence from the teacher, where there is one.
    pub divergence: Option<f64>,
    /// Before clipping.
    pub gradient_norm: f64,
}

/// The graphs and vectors of a run.
#[derive(Debug)]
pub struct Trainer {
    pub layout: ParameterLayout,
    options: TrainerOptions,
    /// The first micro-batch of a step, and those after it.
    first: Program,
    later: Option<Program>,
    /// One for each slice of each group, and so with `adamw`.
    squares: Vec<Program>,
    adamw: Vec<Program>,
    evaluation: Program,
    teacher: Option<Teacher>,
    vectors: BTreeMap<String, DeviceTensor>,
    small: Small,
}

/// Tensors of a few numbers.
#[derive(Debug)]
struct Small {
    tokens: DeviceTensor,
    labels: DeviceTensor,
    loss: DeviceTensor,
    loss_sum: DeviceTensor,
    divergence: DeviceTensor,
    count: DeviceTensor,
    /// A number for each slice, [`SPACE`] apart.
    squares: DeviceTensor,
    rate: DeviceTensor,
    step: DeviceTensor,
    scale: DeviceTensor,
}

/// The graph files of a run.
#[derive(Debug)]
pub struct GraphFiles {
    pub first: PathBuf,
    pub later: Option<PathBuf>,
    /// One for each group, and so with `adamw`.
    pub squares: Vec<PathBuf>,
    pub adamw: Vec<PathBuf>,
    pub evaluation: PathBuf,
}

impl GraphFiles {
    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let own = [Some(&self.first), self.later.as_ref(), Some(&self.evaluation)];
        own.into_iter().flatten().chain(&self.squares).chain(&self.adamw)
    }
}

/// The graphs that are a run's own: the optimiser's is made for every run alike.
#[derive(Debug)]
pub struct RunGraphs {
    /// Loss and gradients of one batch.
    pub first: Graph,
    /// The same with the gradients so far added, where there are several batches per step.
    pub later: Option<Graph>,
    /// What is measured in between.
    pub evaluation: Graph,
}

impl RunGraphs {
    /// The graphs that `step` makes, for gradients on their own and added to those so far.
    pub fn new(
        options: &TrainerOptions,
        step: impl Fn(&StepOptions) -> Result<Graph, TrainingError>,
        evaluation: Graph,
    ) -> Result<Self, TrainError> {
        let later = (options.accumulate > 1).then(|| step(&options.step(Batches::Later))).transpose()?;
        Ok(Self { first: step(&options.first())?, later, evaluation })
    }

    /// Writes them, and the optimiser's, into `dir`.
    pub fn write(
        &self,
        dir: &Path,
        layout: &ParameterLayout,
        options: &TrainerOptions,
    ) -> Result<GraphFiles, TrainError> {
        std::fs::create_dir_all(dir).map_err(|source| TrainError::Io { path: dir.to_owned(), source })?;
        let squares = layout.groups.iter().map(|group| {
            let graph = optimizer::squares(group, options.types(group));
            write(dir, &format!("{SQUARES}.{}.onnx", group.name), &graph.map_err(TrainingError::from)?)
        });
        let adamw = layout.groups.iter().map(|group| {
            let graph = optimizer::adamw(group, &options.optimizer, options.types(group));
            write(dir, &format!("{ADAMW}.{}.onnx", group.name), &graph.map_err(TrainingError::from)?)
        });
        let later = self.later.as_ref().map(|graph| write(dir, STEP_ADDED, graph));
        Ok(GraphFiles {
            first: write(dir, STEP, &self.first)?,
            later: later.transpose()?,
            squares: squares.collect::<Result<_, _>>()?,
            adamw: adamw.collect::<Result<_, _>>()?,
            evaluation: write(dir, EVALUATION, &self.evaluation)?,
        })
    }
}

pub(super) fn write(dir: &Path, name: &str, graph: &Graph) -> Result<PathBuf, TrainError> {
    let path = dir.join(name);
    let bytes = export(graph, &ExportOptions { opset: PORTABLE_OPSET.max(18), weights: None })?;
    stored_file::check(graph.consts().map(|(_, _, tensor)| tensor))?;
    replace_file(&path, &bytes).map_err(|source| TrainError::Io { path: path.clone(), source })?;
    Ok(path)
}

impl Trainer {
    /// Loads the graphs, with the parameters of the bundle and moments of zero.
    pub fn new(
        graphs: &GraphFiles,
        layout: ParameterLayout,
        weights: &Weights,
        options: TrainerOptions,
        teacher: Option<Teacher>,
    ) -> Result<Self, TrainError> {
        let runtime = OrtRuntime::new()?;
        let open =
            |path: &Path, cuda_graph: bool| Program::load(&runtime, path, &options.load(path, cuda_graph));
        let records = options.records();
        let first = open(&graphs.first, records)?;
        let later = graphs.later.as_deref().map(|path| open(path, records)).transpose()?;
        let slices = |paths: &[PathBuf]| {
            let mut programs = Vec::new();
            for (group, path) in layout.groups.iter().zip(paths) {
                let program = open(path, false)?;
                for _ in 1..group.slices() {
                    programs.push(program.again()?);
                }
                programs.push(program);
            }
            Ok::<_, RuntimeError>(programs)
        };
        let (squares, adamw) = (slices(&graphs.squares)?, slices(&graphs.adamw)?);
        let evaluation = open(&graphs.evaluation, false)?;
        let mut vectors = BTreeMap::new();
        for group in &layout.groups {
            let Types { read, gradients } = options.types(group);
            for part in CARRIED {
                vectors.insert(group.vector(part), first.allocate(DType::F32, &[group.len()])?);
            }
            vectors.insert(group.vector(GRADIENTS), first.allocate(element_type(gradients), &[group.len()])?);
            if read != DType::F32 {
                vectors.insert(group.vector(READ), first.allocate(element_type(read), &[group.len()])?);
            }
        }
        if let Some(group) = &layout.drawn {
            vectors.insert(group.vector(PARAMETERS), first.allocate(DType::F32, &[group.len()])?);
        }
        let scalar = || first.allocate(DType::F32, &[]);
        let small = Small {
            tokens: first.allocate_like(TOKENS)?,
            labels: evaluation.allocate_like(step::LABELS)?,
            loss: scalar()?,
            loss_sum: scalar()?,
            divergence: scalar()?,
            count: scalar()?,
            squares: first.allocate(DType::F32, &[squares.len() * SPACE])?,
            rate: scalar()?,
            step: scalar()?,
            scale: scalar()?,
        };
        let mut trainer =
            Self { layout, options, first, later, squares, adamw, evaluation, teacher, vectors, small };
        trainer.bind()?;
        trainer.record()?;
        let inputs: Vec<Group> = trainer.layout.inputs().cloned().collect();
        for group in inputs {
            trainer.set_vector(&group.vector(PARAMETERS), &weights.flat(&group)?)?;
        }
        Ok(trainer)
    }

    /// A graph that is recorded runs several times when it runs first, which those that add up must not do on
    /// numbers that count: so they run once on zeros, and what comes of it is cleared.
    fn record(&mut self) -> Result<(), TrainError> {
        if !self.options.records() {
            return Ok(());
        }
        self.first.run()?;
        if let Some(later) = &mut self.later {
            later.run()?;
        }
        for tensor in self.vectors.values() {
            tensor.write(&HostTensor::zeros(tensor.dtype(), tensor.shape())?)?;
        }
        Ok(())
    }

    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    fn bind(&mut self) -> Result<(), TrainError> {
        if let Some(teacher) = &mut self.teacher {
            teacher.read_tokens_from(&self.small.tokens)?;
        }
        let taught = self.teacher.as_ref().map(Teacher::logits);
        let places = Places { layout: &self.layout, vectors: &self.vectors, small: &self.small, taught };
        let programs = [Some(&mut self.first), self.later.as_mut(), Some(&mut self.evaluation)];
        let parts = places.parts();
        programs
            .into_iter()
            .flatten()
            .try_for_each(|program| places.bind(program, &parts, Slice::default()))?;
        let groups = self.layout.groups.iter();
        let slices = groups.flat_map(|g| (0..g.slices()).map(|i| i * g.slice_len())).enumerate();
        let slices = slices.map(|(number, at)| Slice { number, at });
        for (slice, (squares, adamw)) in slices.zip(self.squares.iter_mut().zip(&mut self.adamw)) {
            places.bind(squares, &BTreeMap::new(), slice)?;
            places.bind(adamw, &BTreeMap::new(), slice)?;
        }
        Ok(())
    }

    /// Step number `number` of a run over `windows`, and what there is to say of it.
    pub fn advance(&mut self, windows: &mut Windows, number: usize, rate: f64) -> Result<Line, TrainError> {
        let begun = Instant::now();
        let rows = self.options.size.batch as usize;
        let each = rows * self.options.accumulate;
        let mut batch = |i: usize| -> Vec<Vec<i64>> {
            let first = (number - 1) * each + i * rows;
            (first..first + rows).map(|index| windows.get(index)).collect()
        };
        let done = self.step(&mut batch, number, rate)?;
        let tokens = each * self.options.size.sequence as usize;
        Ok(Line {
            step: number,
            tokens: tokens.saturating_mul(number),
            loss: done.loss,
            kl: done.divergence,
            grad_norm: done.gradient_norm,
            lr: rate,
            tokens_per_second: tokens as f64 / begun.elapsed().as_secs_f64(),
            valid_perplexity: None,
        })
    }

    /// One step on micro-batches, asked for by their number. Numbers that are not finite leave everything as it was.
    fn step(
        &mut self,
        batch: &mut dyn FnMut(usize) -> Vec<Vec<i64>>,
        number: usize,
        rate: f64,
    ) -> Result<Step, TrainError> {
        let begun = Instant::now();
        let (mut loss, mut divergence) = (0.0, self.teacher.is_some().then_some(0.0));
        for i in 0..self.options.accumulate {
            self.feed(&batch(i), &[])?;
            if let Some(teacher) = &mut self.teacher {
                teacher.run()?;
            }
            match self.later.as_mut().filter(|_| i > 0) {
                Some(later) => later.run()?,
                None => self.first.run()?,
            }
            loss += number_in(&self.small.loss)?;
            if let Some(sum) = &mut divergence {
                *sum += number_in(&self.small.divergence)?;
            }
        }
        let count = self.options.accumulate as f64;
        let gradients = begun.elapsed();
        let divergence = divergence.map(|sum| sum / count);
        let step = Step { loss: loss / count, divergence, gradient_norm: self.gradient_norm()? / count };
        let norm = begun.elapsed();
        if !(step.loss.is_finite() && step.gradient_norm.is_finite()) {
            return Err(TrainError::NotFinite {
                step: number,
                loss: step.loss,
                gradient_norm: step.gradient_norm,
            });
        }
        // As PyTorch's clip_grad_norm_ has it.
        let clip = (self.options.clip_norm / (step.gradient_norm + 1e-6)).min(1.0);
        put(&self.small.rate, rate)?;
        put(&self.small.step, number as f64)?;
        put(&self.small.scale, clip / count)?;
        self.adamw.iter_mut().try_for_each(Program::run)?;
        let (norm, update) = (norm.saturating_sub(gradients), begun.elapsed().saturating_sub(norm));
        tracing::debug!(number, ?gradients, ?norm, ?update, "step");
        Ok(step)
    }

    fn gradient_norm(&mut self) -> Result<f64, TrainError> {
        self.squares.iter_mut().try_for_each(Program::run)?;
        let squares = self.small.squares.read()?.to_f32()?;
        Ok(squares.into_iter().map(f64::from).sum::<f64>().sqrt())
    }

    /// The mean loss over windows.
    pub fn evaluate(&mut self, windows: &[Vec<i64>]) -> Result<f64, TrainError> {
        let rows = self.options.size.batch as usize;
        let (mut sum, mut count) = (0.0, 0.0);
        let batches = windows.len().div_ceil(rows);
        for (i, batch) in windows.chunks(rows).enumerate() {
            let missing = vec![vec![step_ignore(); self.options.size.sequence as usize]; rows - batch.len()];
            self.feed(batch, &missing)?;
            match i + 1 == batches {
                true => self.evaluation.run_and_release()?,
                false => self.evaluation.run()?,
            }
            sum += number_in(&self.small.loss_sum)?;
            count += number_in(&self.small.count)?;
        }
        Ok(sum / f64::max(count, 1.0))
    }

    /// Windows as tokens and labels; rows of `missing` labels stand where there is no window.
    fn feed(&self, windows: &[Vec<i64>], missing: &[Vec<i64>]) -> Result<(), TrainError> {
        let shape = [self.options.size.batch as usize, self.options.size.sequence as usize];
        let nothing = vec![vec![0; shape[1]]; missing.len()];
        let tokens = [windows, &nothing].concat().concat();
        let labels = [windows, missing].concat().concat();
        self.small.tokens.write(&HostTensor::from_i64(&shape, &tokens)?)?;
        self.small.labels.write(&HostTensor::from_i64(&shape, &labels)?)?;
        Ok(())
    }

    /// A vector by its name, as numbers.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        Ok(self.vectors[name].read()?.to_f32()?)
    }

    /// Puts numbers into a vector.
    pub fn set_vector(&mut self, name: &str, values: &[f32]) -> Result<(), TrainError> {
        self.vectors[name].write(&HostTensor::from_f32(&[values.len()], values)?)?;
        let group = self.layout.groups.iter().find(|group| group.vector(PARAMETERS) == name);
        if let Some((group, read)) = group.and_then(|g| Some((g, self.vectors.get(&g.vector(READ))?))) {
            write_as(read, self.options.types(group).read, values)?;
        }
        Ok(())
    }
}

/// Puts numbers into a vector of another element type.
pub(super) fn write_as(vector: &DeviceTensor, dtype: DType, values: &[f32]) -> Result<(), TrainError> {
    let cast = Tensor::from_f32(&[values.len() as u64], values).cast(dtype);
    Ok(vector.write(&HostTensor::new(vector.dtype(), vec![values.len()], cast.bytes().to_vec())?)?)
}

fn step_ignore() -> i64 {
    dijiang_passes::training::loss::IGNORE
}

/// Where everything lies that a graph reads or writes.
struct Places<'a> {
    layout: &'a ParameterLayout,
    vectors: &'a BTreeMap<String, DeviceTensor>,
    small: &'a Small,
    /// The teacher's logits.
    taught: Option<&'a BTreeMap<String, DeviceTensor>>,
}

/// A slice of a group's flat vectors: which of all groups' slices, and where it begins.
#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    number: usize,
    at: usize,
}

/// Elements between single numbers, so that each lies where a kernel may expect it.
const SPACE: usize = 64;

/// A tensor, or a part of one.
#[derive(Clone)]
struct Place<'a> {
    tensor: &'a DeviceTensor,
    at: usize,
    shape: Vec<usize>,
}

impl Places<'_> {
    /// Binds all inputs and outputs: the parts to their places, flat vectors to a slice.
    fn bind(
        &self,
        program: &mut Program,
        parts: &BTreeMap<String, Place<'_>>,
        slice: Slice,
    ) -> Result<(), TrainError> {
        for io in program.inputs().to_vec() {
            let place = self.find(parts, &io, slice);
            program.bind_input_part(&io.name, place.tensor, place.at, &place.shape)?;
        }
        for io in program.outputs().to_vec() {
            let place = self.find(parts, &io, slice);
            program.bind_output_part(&io.name, place.tensor, place.at, &place.shape)?;
        }
        Ok(())
    }

    /// Each parameter and gradient.
    fn parts(&self) -> BTreeMap<String, Place<'_>> {
        let mut parts = BTreeMap::new();
        for group in self.layout.inputs() {
            let read = self.vectors.get(&group.vector(READ));
            let read = read.unwrap_or_else(|| &self.vectors[&group.vector(PARAMETERS)]);
            for (at, parameter) in group.offsets() {
                parts.insert(parameter.input(), Place { tensor: read, at, shape: dims(parameter) });
            }
        }
        for group in &self.layout.groups {
            let gradients = &self.vectors[&group.vector(GRADIENTS)];
            for (at, parameter) in group.offsets() {
                parts.insert(parameter.gradient(), Place { tensor: gradients, at, shape: dims(parameter) });
            }
        }
        parts
    }

    fn find<'s>(&'s self, parts: &'s BTreeMap<String, Place<'_>>, io: &Io, slice: Slice) -> Place<'s> {
        let bare = io.name.trim_start_matches(optimizer::UPDATED).trim_start_matches(step::SO_FAR);
        if let Some(part) = parts.get(bare) {
            return part.clone();
        }
        let small = self.small;
        let tensor = match bare {
            logits if logits.starts_with(step::TEACHER) => &self.taught.unwrap_or(self.vectors)[logits],
            step::DIVERGENCE => &small.divergence,
            TOKENS => &small.tokens,
            step::LABELS => &small.labels,
            step::LOSS => &small.loss,
            step::LOSS_SUM => &small.loss_sum,
            step::COUNT => &small.count,
            optimizer::SQUARES => {
                return Place { tensor: &small.squares, at: slice.number * SPACE, shape: Vec::new() };
            }
            optimizer::LEARNING_RATE => &small.rate,
            optimizer::STEP => &small.step,
            optimizer::GRADIENT_SCALE => &small.scale,
            vector => return Place { tensor: &self.vectors[vector], at: slice.at, shape: numbers(io) },
        };
        Place { tensor, at: 0, shape: tensor.shape().to_vec() }
    }
}

pub(super) fn dims(parameter: &Parameter) -> Vec<usize> {
    parameter.dims.iter().map(|d| *d as usize).collect()
}

/// The dims of a graph in which all of them are numbers.
fn numbers(io: &Io) -> Vec<usize> {
    let fixed = io.shape.iter().filter_map(|dim| match dim {
        DimSpec::Fixed(n) => Some(*n),
        DimSpec::Dynamic(_) => None,
    });
    fixed.collect()
}

pub(super) fn element_type(dtype: DType) -> DType {
    match dtype {
        DType::BF16 => DType::BF16,
        _ => DType::F32,
    }
}

pub(super) fn number_in(tensor: &DeviceTensor) -> Result<f64, TrainError> {
    Ok(tensor.read()?.to_f32()?.first().copied().map_or(f64::NAN, f64::from))
}

fn put(tensor: &DeviceTensor, value: f64) -> Result<(), TrainError> {
    Ok(tensor.write(&HostTensor::from_f32(&[], &[value as f32])?)?)
}
