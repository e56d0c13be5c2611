//! Calibration: feature weights fitted without gradients, then attention transfer from the softmax model in the bundle to its linear attentions. Only what
//! the conversion added is trained.

use super::finetune::{DIR, Data, Sources, Trained, model_graph, put_back, read_data, training_form};
use super::fit::{self, Fitted, Values, fit_features};
use super::metrics::{self, Line, Metrics};
use super::schedule::Schedule;
use super::trainer::{RunGraphs, Trainer, TrainerOptions};
use super::weights::Weights;
use super::{TrainError, memory};
use crate::bundle::lock::BundleLock;
use crate::onnx::import;
use crate::provenance::opened;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_format::recipe::Recipe;
use dijiang_passes::attention::calibration_graph::write_beside;
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::rewrite::Options;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::feature_map::added::is_added;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::parameters::{PARAMETERS, ParameterLayout, Selection};
use dijiang_passes::training::step::{StepOptions, evaluation};
use dijiang_passes::training::transfer::transfer_step;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// The learning rate where nothing is said.
pub const RATE: f64 = 3e-2;

/// A run.
#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    pub sources: Sources,
    pub trainer: TrainerOptions,
    pub schedule: Schedule,
    pub seed: u64,
    /// Whether to fit feature weights before the steps.
    pub fit: bool,
}

/// What came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Calibrated {
    pub steps: usize,
    pub tokens: usize,
    pub trained_parameters: usize,
    /// The fit before the steps, where there was one.
    pub fit: Option<Fitted>,
    /// Relative squared error of the attentions, at the first step and the last, where there were steps.
    pub error_before: Option<f64>,
    pub error: Option<f64>,
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
    let _lock = BundleLock::acquire(bundle)?;
    let mut manifest = Manifest::float_weights(bundle)?;
    if manifest.source.own_attention {
        return Err(TrainError::OwnAttention { bundle: bundle.to_owned() });
    }
    opened::check_whole(bundle, &manifest)?;
    super::begin(bundle)?;
    super::disk::check(bundle, 0)?;
    let size = options.trainer.size;
    memory::check(&manifest, size, options.trainer.device)?;
    let Data { mut windows, held_out, .. } =
        read_data(bundle, &manifest, &options.sources, size.sequence as usize, options.seed)?;
    let linear = model_graph(bundle, &manifest, size.sequence)?;
    let layout = ParameterLayout::of(&linear, &Selection::New)?;
    let weights = Weights::open(bundle, &layout)?;
    let softmax = Softmax::of(bundle, &manifest, size.sequence)?;
    let mut both = softmax.graph.clone();
    let layers = write_beside(&mut both, &softmax.options())?;
    let evaluation = evaluation(&linear, &layout, size, options.trainer.precision)?;
    let step = |how: &StepOptions| transfer_step(&both, &layers, &layout, how);
    let dir = bundle.join(DIR);
    let graphs =
        RunGraphs::new(&options.trainer, step, evaluation)?.write(&dir, &layout, &options.trainer)?;
    let mut trainer = Trainer::new(&graphs, layout, &weights, options.trainer.clone(), None)?;
    let before = trainer.evaluate(&held_out)?.exp();
    let fitted = match options.fit {
        true => {
            let sampled: Vec<Vec<i64>> =
                (0..fit::WINDOWS.min(windows.len())).map(|i| windows.get(i)).collect();
            fit_weights(bundle, (&softmax, &linear), &sampled, &mut trainer, &weights)?
        }
        false => None,
    };
    let io = |source| TrainError::Io { path: dir.join(metrics::FILE), source };
    let mut metrics = Metrics::open(&dir, 0).map_err(io)?;
    for step in 1..=options.schedule.steps {
        let line = trainer.advance(&mut windows, step, options.schedule.rate(step))?;
        metrics.add(line.clone()).map_err(io)?;
        on_step(&line);
    }
    let after = trainer.evaluate(&held_out)?.exp();
    let when = match options.schedule.steps {
        0 => "the fit".to_owned(),
        steps => format!("step {steps}"),
    };
    let is_changed = options.schedule.steps > 0 || fitted.is_some_and(|fitted| fitted.kept);
    let perplexity = is_changed.then_some(after);
    let trained = Trained { trainer: &trainer, perplexity, when, command: "calibrate" };
    put_back(bundle, &mut manifest, &weights, &trained)?;
    let error = |line: Option<&Line>| line.map(|l| l.loss);
    Ok(Calibrated {
        steps: options.schedule.steps,
        tokens: metrics.lines.last().map_or(0, |l| l.tokens),
        trained_parameters: trainer.layout.len(),
        fit: fitted,
        error_before: error(metrics.lines.first()),
        error: error(metrics.lines.last()),
        valid_perplexity_before: before,
        valid_perplexity: after,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Fits feature weights into the trainer, and takes them back if the model's loss rises.
fn fit_weights(
    bundle: &Path,
    (softmax, linear): (&Softmax, &Graph),
    sampled: &[Vec<i64>],
    trainer: &mut Trainer,
    weights: &Weights,
) -> Result<Option<Fitted>, TrainError> {
    let new = linear.consts().filter(|(_, name, _)| is_added(name));
    let current: Values = new.map(|(_, name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let how = trainer.options().clone();
    let graph = (softmax.graph.clone(), &softmax.options());
    let Some((fitted, values)) = fit_features(bundle, graph, &current, sampled, &how)? else {
        return Ok(None);
    };
    let before = trainer.evaluate(sampled)?;
    let put = |trainer: &mut Trainer, values: &Values| {
        for group in trainer.layout.groups.clone() {
            trainer.set_vector(&group.vector(PARAMETERS), &weights.flat_with(&group, values)?)?;
        }
        Ok::<_, TrainError>(())
    };
    put(trainer, &values)?;
    let kept = trainer.evaluate(sampled)? < before;
    if !kept {
        put(trainer, &BTreeMap::new())?;
    }
    Ok(Some(Fitted { kept, ..fitted }))
}

/// The softmax model of the bundle, and how its attentions were replaced.
struct Softmax {
    graph: Graph,
    recipe: Recipe,
    form: Form,
    seed: u64,
    lowered: Vec<usize>,
}

impl Softmax {
    fn of(bundle: &Path, manifest: &Manifest, sequence: u64) -> Result<Self, TrainError> {
        let recipe = manifest.recipe.clone();
        let mut graph = import::import(&bundle.join(files::SOFTMAX))?;
        canonicalize(&mut graph)?;
        let form = training_form(sequence, recipe.chunk);
        let lowered = manifest.sites.iter().filter(|s| s.lowered).map(|s| s.layer).collect();
        Ok(Self { graph, recipe, form, seed: manifest.seed, lowered })
    }

    fn options(&self) -> Options<'_> {
        let layers = Some(self.lowered.as_slice());
        Options { recipe: &self.recipe, form: self.form, seed: self.seed, layers, added: None }
    }
}
