//! A training run's graphs, loaded, and the vectors they work on.

use super::TrainError;
use super::weights::Weights;
use crate::onnx::export::{ExportOptions, export};
use crate::target::PORTABLE_OPSET;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::TrainingError;
use dijiang_passes::training::optimizer::{self, AdamW};
use dijiang_passes::training::parameters::{Layout, Precision};
use dijiang_passes::training::specialize::{Size, TOKENS};
use dijiang_passes::training::step::{self, StepOptions};
use dijiang_runtime::{Device, DeviceTensor, Dtype, HostTensor, LoadOptions, OrtRuntime, Program};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The graph files of a run, in the bundle's directory `train`.
const GRADIENTS: &str = "gradients.onnx";
const GRADIENTS_ADDED: &str = "gradients_added.onnx";
const ADAMW: &str = "adamw.onnx";
const EVALUATION: &str = "evaluation.onnx";

/// The vectors of each group that a run carries from step to step.
pub(super) const CARRIED: [&str; 3] = ["parameters", "first_moments", "second_moments"];

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    pub size: Size,
    pub precision: Precision,
    pub device: Device,
    pub threads: Option<usize>,
    /// Where ONNX Runtime's profiles of the graphs go.
    pub profile: Option<PathBuf>,
    pub optimizer: AdamW,
    /// Gradients above this norm are scaled down to it.
    pub clip_norm: f64,
    /// Micro-batches per step.
    pub accumulate: usize,
}

/// What a step measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean over the micro-batches.
    pub loss: f64,
    /// Before clipping.
    pub gradient_norm: f64,
}

/// The graphs and vectors of a run.
#[derive(Debug)]
pub struct Trainer {
    pub layout: Layout,
    options: TrainerOptions,
    /// The first micro-batch of a step, and those after it.
    first: Program,
    later: Option<Program>,
    adamw: Program,
    evaluation: Program,
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
    count: DeviceTensor,
    norm: DeviceTensor,
    rate: DeviceTensor,
    step: DeviceTensor,
    scale: DeviceTensor,
}

/// The graph files of a run.
#[derive(Debug)]
pub struct GraphFiles {
    pub first: PathBuf,
    pub later: Option<PathBuf>,
    pub adamw: PathBuf,
    pub evaluation: PathBuf,
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
        let with =
            |accumulate| step(&StepOptions { size: options.size, precision: options.precision, accumulate });
        let later = (options.accumulate > 1).then(|| with(true)).transpose()?;
        Ok(Self { first: with(false)?, later, evaluation })
    }

    /// Writes them, and the optimiser's, into `dir`.
    pub fn write(
        &self,
        dir: &Path,
        layout: &Layout,
        options: &TrainerOptions,
    ) -> Result<GraphFiles, TrainError> {
        std::fs::create_dir_all(dir).map_err(|source| TrainError::Io { path: dir.to_owned(), source })?;
        let adamw = optimizer::adamw(layout, &options.optimizer).map_err(TrainingError::from)?;
        let later = self.later.as_ref().map(|graph| write(dir, GRADIENTS_ADDED, graph));
        Ok(GraphFiles {
            first: write(dir, GRADIENTS, &self.first)?,
            later: later.transpose()?,
            adamw: write(dir, ADAMW, &adamw)?,
            evaluation: write(dir, EVALUATION, &self.evaluation)?,
        })
    }
}

pub(super) fn write(dir: &Path, name: &str, graph: &Graph) -> Result<PathBuf, TrainError> {
    let path = dir.join(name);
    let bytes = export(graph, &ExportOptions { opset: PORTABLE_OPSET.max(18), weights: None })?;
    std::fs::write(&path, bytes).map_err(|source| TrainError::Io { path: path.clone(), source })?;
    Ok(path)
}

impl Trainer {
    /// Loads the graphs, with the parameters of the bundle and moments of zero.
    pub fn new(
        runtime: &OrtRuntime,
        graphs: &GraphFiles,
        layout: Layout,
        weights: &Weights,
        options: TrainerOptions,
    ) -> Result<Self, TrainError> {
        let open = |path: &Path| {
            let profile = options.profile.as_ref().zip(path.file_stem()).map(|(dir, stem)| dir.join(stem));
            let (threads, device) = (options.threads, options.device);
            Program::load(runtime, path, &LoadOptions { threads, device, profile, ..LoadOptions::default() })
        };
        let (first, adamw, evaluation) =
            (open(&graphs.first)?, open(&graphs.adamw)?, open(&graphs.evaluation)?);
        let later = graphs.later.as_deref().map(open).transpose()?;
        let mut vectors = BTreeMap::new();
        for group in &layout.groups {
            for part in CARRIED.iter().chain(&["gradients"]) {
                vectors.insert(group.vector(part), first.allocate(Dtype::F32, &[group.len()])?);
            }
            vectors[&group.vector("parameters")]
                .write(&HostTensor::from_f32(&[group.len()], &weights.flat(group))?)?;
        }
        let scalar = || first.allocate(Dtype::F32, &[]);
        let small = Small {
            tokens: first.allocate_like(TOKENS)?,
            labels: evaluation.allocate_like(step::LABELS)?,
            loss: scalar()?,
            loss_sum: scalar()?,
            count: scalar()?,
            norm: scalar()?,
            rate: scalar()?,
            step: scalar()?,
            scale: scalar()?,
        };
        let mut trainer = Self { layout, options, first, later, adamw, evaluation, vectors, small };
        trainer.bind()?;
        Ok(trainer)
    }

    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    fn bind(&mut self) -> Result<(), TrainError> {
        let programs =
            [Some(&mut self.first), self.later.as_mut(), Some(&mut self.adamw), Some(&mut self.evaluation)];
        for program in programs.into_iter().flatten() {
            bind(program, &self.vectors, &self.small)?;
        }
        Ok(())
    }

    /// One step on windows for all micro-batches. Numbers that are not finite leave everything as it was.
    pub fn step(&mut self, windows: &[Vec<i64>], number: usize, rate: f64) -> Result<Step, TrainError> {
        let rows = self.options.size.batch as usize;
        let mut loss = 0.0;
        for (i, batch) in windows.chunks(rows).enumerate() {
            self.feed(batch, &[])?;
            match self.later.as_mut().filter(|_| i > 0) {
                Some(later) => later.run()?,
                None => self.first.run()?,
            }
            loss += number_in(&self.small.loss)?;
        }
        let count = windows.len().div_ceil(rows) as f64;
        let step = Step { loss: loss / count, gradient_norm: number_in(&self.small.norm)? / count };
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
        self.adamw.run()?;
        Ok(step)
    }

    /// The mean loss over windows.
    pub fn evaluate(&mut self, windows: &[Vec<i64>]) -> Result<f64, TrainError> {
        let rows = self.options.size.batch as usize;
        let (mut sum, mut count) = (0.0, 0.0);
        for batch in windows.chunks(rows) {
            let missing = vec![vec![step_ignore(); self.options.size.sequence as usize]; rows - batch.len()];
            self.feed(batch, &missing)?;
            self.evaluation.run()?;
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
        Ok(self.vectors[name].write(&HostTensor::from_f32(&[values.len()], values)?)?)
    }
}

fn step_ignore() -> i64 {
    dijiang_passes::training::loss::IGNORE
}

fn bind(
    program: &mut Program,
    vectors: &BTreeMap<String, DeviceTensor>,
    small: &Small,
) -> Result<(), TrainError> {
    let find = |name: &str| {
        let bare = name.trim_start_matches(optimizer::UPDATED).trim_start_matches(step::SO_FAR);
        match bare {
            TOKENS => &small.tokens,
            step::LABELS => &small.labels,
            step::LOSS => &small.loss,
            step::LOSS_SUM => &small.loss_sum,
            step::COUNT => &small.count,
            step::NORM => &small.norm,
            optimizer::LEARNING_RATE => &small.rate,
            optimizer::STEP => &small.step,
            optimizer::GRADIENT_SCALE => &small.scale,
            vector => &vectors[vector],
        }
    };
    let names = |ios: &[dijiang_runtime::Io]| ios.iter().map(|io| io.name.clone()).collect::<Vec<_>>();
    let (inputs, outputs) = (names(program.inputs()), names(program.outputs()));
    for name in inputs {
        program.bind_input(&name, find(&name))?;
    }
    for name in outputs {
        program.bind_output(&name, find(&name))?;
    }
    Ok(())
}

pub(super) fn number_in(tensor: &DeviceTensor) -> Result<f64, TrainError> {
    Ok(tensor.read()?.to_f32()?.first().copied().map_or(f64::NAN, f64::from))
}

fn put(tensor: &DeviceTensor, value: f64) -> Result<(), TrainError> {
    Ok(tensor.write(&HostTensor::from_f32(&[], &[value as f32])?)?)
}
