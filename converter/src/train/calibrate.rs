//! Calibration: attention transfer from the softmax model in the bundle to its linear attentions. Only what
//! the conversion added is trained.

use super::TrainError;
use super::finetune::{DIR, Sources, model_graph, put_back, read_data, trains_in_chunks};
use super::metrics::{self, Line, Metrics};
use super::schedule::Schedule;
use super::trainer::{RunGraphs, Trainer, TrainerOptions};
use super::weights::Weights;
use crate::bundle::layout;
use crate::bundle::manifest::Manifest;
use crate::onnx::import;
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::rewrite::{Options, write_beside};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::recipe::Recipe;
use dijiang_passes::training::parameters::{Layout, Selection};
use dijiang_passes::training::step::{StepOptions, evaluation};
use dijiang_passes::training::transfer::transfer_step;
use dijiang_runtime::OrtRuntime;
use std::path::Path;
use std::time::Instant;

/// A run.
#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    pub sources: Sources,
    pub trainer: TrainerOptions,
    pub schedule: Schedule,
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Calibrated {
    pub steps: usize,
    pub tokens: usize,
    pub trained_parameters: usize,
    /// Relative squared error of the attentions, at the first step and the last.
    pub error_before: f64,
    pub error: f64,
    pub valid_perplexity_before: f64,
    pub valid_perplexity: f64,
    pub seconds: f64,
}

/// Calibrates the bundle. Its weights are replaced when the run is over.
pub fn calibrate(
    bundle: &Path,
    options: &CalibrateOptions,
    on_step: &mut dyn FnMut(&Line),
) -> Result<Calibrated, TrainError> {
    let started = Instant::now();
    let mut manifest = Manifest::read(bundle)?;
    let size = options.trainer.size;
    let (mut windows, held_out) =
        read_data(bundle, &manifest, &options.sources, size.sequence as usize, options.seed)?;
    let linear = model_graph(bundle, &manifest, size.sequence)?;
    let layout = Layout::of(&linear, &Selection::New)?;
    let weights = Weights::open(bundle, &layout)?;
    let (both, layers) = both_attentions(bundle, &manifest, size.sequence)?;
    let evaluation = evaluation(&linear, &layout, size, options.trainer.precision)?;
    let step = |how: &StepOptions| transfer_step(&both, &layers, &layout, how);
    let dir = bundle.join(DIR);
    let graphs =
        RunGraphs::new(&options.trainer, step, evaluation)?.write(&dir, &layout, &options.trainer)?;
    let mut trainer = Trainer::new(&OrtRuntime::new()?, &graphs, layout, &weights, options.trainer.clone())?;
    let before = trainer.evaluate(&held_out)?.exp();
    let io = |source| TrainError::Io { path: dir.join(metrics::FILE), source };
    let mut metrics = Metrics::open(&dir, 0).map_err(io)?;
    let rows = size.batch as usize * options.trainer.accumulate;
    for step in 1..=options.schedule.steps {
        let begun = Instant::now();
        let chosen: Vec<Vec<i64>> = (0..rows).map(|i| windows.get((step - 1) * rows + i)).collect();
        let lr = options.schedule.rate(step);
        let done = trainer.step(&chosen, step, lr)?;
        let tokens = rows * size.sequence as usize;
        let line = Line {
            step,
            tokens: tokens * step,
            loss: done.loss,
            grad_norm: done.gradient_norm,
            lr,
            tokens_per_second: tokens as f64 / begun.elapsed().as_secs_f64(),
            valid_perplexity: None,
        };
        metrics.add(line.clone()).map_err(io)?;
        on_step(&line);
    }
    let after = trainer.evaluate(&held_out)?.exp();
    put_back(bundle, &mut manifest, &trainer, &weights)?;
    let error = |line: Option<&Line>| line.map_or(f64::NAN, |l| l.loss);
    Ok(Calibrated {
        steps: options.schedule.steps,
        tokens: metrics.lines.last().map_or(0, |l| l.tokens),
        trained_parameters: trainer.layout.len(),
        error_before: error(metrics.lines.first()),
        error: error(metrics.lines.last()),
        valid_perplexity_before: before,
        valid_perplexity: after,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The softmax model with the linear attentions beside its own.
fn both_attentions(
    bundle: &Path,
    manifest: &Manifest,
    sequence: u64,
) -> Result<(Graph, Vec<usize>), TrainError> {
    let path = bundle.join(layout::MANIFEST);
    let recipe: Recipe = serde_json::from_value(manifest.recipe.clone())
        .map_err(|e| TrainError::Recipe { path, reason: e.to_string() })?;
    let mut graph = import::import(&bundle.join(layout::SOFTMAX))?;
    canonicalize(&mut graph)?;
    let form = if trains_in_chunks(sequence, u64::from(recipe.chunk)) {
        Form::Chunked(recipe.chunk)
    } else {
        Form::Parallel
    };
    let lowered: Vec<usize> = manifest.sites.iter().filter(|s| s.lowered).map(|s| s.layer).collect();
    let options = Options { recipe: &recipe, form, seed: manifest.seed, layers: Some(&lowered) };
    let layers = write_beside(&mut graph, &options)?;
    Ok((graph, layers))
}
