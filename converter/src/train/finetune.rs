//! Fine-tuning: cross-entropy over data until the steps are done, with checkpoints to go on from.

use super::TrainError;
use super::checkpoint::{self, Checkpoint};
use super::data::{self, Texts, Windows};
use super::metrics::{Line, Metrics};
use super::plot;
use super::schedule::Schedule;
use super::teacher::{Teacher, TeacherOptions};
use super::trainer::{CARRIED, GraphFiles, RunGraphs, Trainer, TrainerOptions};
use super::weights::Weights;
use crate::bundle::layout;
use crate::bundle::manifest::{Manifest, SourceFile};
use crate::bundle::replace::replace_file;
use crate::onnx::import;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::TrainingError;
use dijiang_passes::training::lora::{Addition, add_low_rank};
use dijiang_passes::training::parameters::{Layout, Selection};
use dijiang_passes::training::step::{StepOptions, evaluation, training_step};
use dijiang_runtime::OrtRuntime;
use dijiang_runtime::temporary::note_kept;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

/// Where a run keeps its graphs, checkpoint and metrics, in the bundle.
pub const DIR: &str = "train";

/// Which weights are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every weight.
    All,
    /// The attention modules.
    Attention,
    /// What the conversion added.
    Dijiang,
    /// That, and additions of this rank to the linear layers, which become part of their weights in the end.
    Lora(u64),
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("lora:").map(str::parse)) {
            ("all", _) => Ok(Self::All),
            ("attention", _) => Ok(Self::Attention),
            ("dijiang", _) => Ok(Self::Dijiang),
            (_, Some(Ok(rank @ 1..))) => Ok(Self::Lora(rank)),
            _ => Err("expected all, attention, dijiang, or lora:RANK with a rank from 1 on".to_owned()),
        }
    }
}

/// What a run trains, and its graphs in the bundle.
#[derive(Debug)]
pub struct Plan {
    pub layout: Layout,
    pub additions: Vec<Addition>,
    pub graphs: GraphFiles,
}

/// What a run reads.
#[derive(Debug, Clone)]
pub struct Sources {
    pub data: Vec<PathBuf>,
    /// Without it, the end of the data is held out.
    pub valid: Vec<PathBuf>,
    /// Windows to validate on, at most.
    pub validation_windows: usize,
}

/// A run.
#[derive(Debug, Clone)]
pub struct FinetuneOptions {
    pub sources: Sources,
    pub scope: Scope,
    pub trainer: TrainerOptions,
    pub teacher: Option<TeacherOptions>,
    pub schedule: Schedule,
    pub seed: u64,
    /// Steps between checkpoints, and between validations.
    pub checkpoint_every: usize,
    pub validate_every: usize,
    pub resume: bool,
}

/// What came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finetuned {
    pub steps: usize,
    pub tokens: usize,
    pub trained_parameters: usize,
    pub valid_perplexity_before: f64,
    pub valid_perplexity: f64,
    pub seconds: f64,
}

/// Hears of every step.
pub type OnStep<'a> = &'a mut dyn FnMut(&Line);

/// Trains the bundle. Its weights are replaced when the run is over.
pub fn finetune(
    bundle: &Path,
    options: &FinetuneOptions,
    on_step: OnStep<'_>,
) -> Result<Finetuned, TrainError> {
    let started = Instant::now();
    let mut manifest = Manifest::float_weights(bundle)?;
    super::clean(bundle)?;
    let context = options.trainer.size.sequence;
    let (mut windows, held_out) =
        read_data(bundle, &manifest, &options.sources, context as usize, options.seed)?;
    let dir = bundle.join(DIR);
    let weight = options.teacher.as_ref().map(|t| t.weight);
    let (scope, seed) = (options.scope, options.seed);
    let Plan { layout, additions, graphs } =
        write_graphs(bundle, &manifest, scope, seed, &options.trainer, weight)?;
    let weights = Weights::with_additions(bundle, &layout, additions)?;
    let runtime = OrtRuntime::new()?;
    let load =
        |t: &TeacherOptions| Teacher::load(&runtime, &t.source, (bundle, &manifest), &dir, &options.trainer);
    let teacher = options.teacher.as_ref().map(load).transpose()?;
    let mut trainer = Trainer::new(&runtime, &graphs, layout, &weights, options.trainer.clone(), teacher)?;
    let mut run = Run { dir, options, trainer: &mut trainer, held_out };
    let (first, before) = run.begin()?;
    let mut metrics = Metrics::open(&run.dir, first).map_err(|e| run.io(super::metrics::FILE, e))?;
    let mut perplexity = before;
    note_kept(bundle, "has its weights of before");
    for step in first + 1..=options.schedule.steps {
        let line = run.step(step, &mut windows)?;
        perplexity = line.valid_perplexity.unwrap_or(perplexity);
        metrics.add(line.clone()).map_err(|e| run.io(super::metrics::FILE, e))?;
        on_step(&line);
        if step.is_multiple_of(options.checkpoint_every) && step < options.schedule.steps {
            run.checkpoint(step)?;
        }
    }
    let path = run.dir.join(plot::FILE);
    std::fs::write(&path, plot::loss_curve(&metrics.lines))
        .map_err(|source| TrainError::Io { path, source })?;
    let tokens = metrics.lines.last().map_or(0, |l| l.tokens);
    let trained_parameters = trainer.layout.len();
    put_back(bundle, &mut manifest, &trainer, &weights)?;
    Ok(Finetuned {
        steps: options.schedule.steps,
        tokens,
        trained_parameters,
        valid_perplexity_before: before,
        valid_perplexity: perplexity,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Writes a run's graphs into the bundle. The seed is that of additions; `teacher` is the weight of the divergence
/// from one.
pub fn write_graphs(
    bundle: &Path,
    manifest: &Manifest,
    scope: Scope,
    seed: u64,
    options: &TrainerOptions,
    teacher: Option<f64>,
) -> Result<Plan, TrainError> {
    let mut model = model_graph(bundle, manifest, options.size.sequence)?;
    let additions = match scope {
        Scope::Lora(rank) => add_low_rank(&mut model, rank, seed).map_err(TrainingError::from)?,
        Scope::All | Scope::Attention | Scope::Dijiang => Vec::new(),
    };
    let layout = Layout::of(&model, &selection(scope, manifest))?;
    let evaluation = evaluation(&model, &layout, options.size, options.precision)?;
    let step = |how: &StepOptions| training_step(&model, &layout, &StepOptions { teacher, ..*how });
    let graphs = RunGraphs::new(options, step, evaluation)?.write(&bundle.join(DIR), &layout, options)?;
    Ok(Plan { layout, additions, graphs })
}

fn selection(scope: Scope, manifest: &Manifest) -> Selection {
    match scope {
        Scope::All => Selection::All,
        Scope::Attention => Selection::Attention(manifest.sites.iter().map(|s| s.name.clone()).collect()),
        Scope::Dijiang => Selection::New,
        Scope::Lora(_) => Selection::LowRank,
    }
}

/// Sequences of several chunks are trained in chunks, which keeps memory linear; shorter ones all at once.
pub(super) fn trains_in_chunks(sequence: u64, chunk: u64) -> bool {
    sequence > 2 * chunk
}

/// The form of the model that training computes.
pub(super) fn model_graph(bundle: &Path, manifest: &Manifest, sequence: u64) -> Result<Graph, TrainError> {
    let chunk = manifest.recipe.get("chunk").and_then(serde_json::Value::as_u64).unwrap_or(64);
    let file = if manifest.sites.iter().all(|site| !site.lowered) {
        layout::SOFTMAX
    } else if trains_in_chunks(sequence, chunk) {
        layout::CHUNKED
    } else {
        layout::PARALLEL
    };
    let mut graph = import::import(&bundle.join(file))?;
    canonicalize(&mut graph)?;
    Ok(graph)
}

/// Training windows, and those to validate on.
pub(super) fn read_data(
    bundle: &Path,
    manifest: &Manifest,
    sources: &Sources,
    context: usize,
    seed: u64,
) -> Result<(Windows, Vec<Vec<i64>>), TrainError> {
    if let Some(positions) = manifest.model.positions.filter(|p| (*p as usize) < context) {
        return Err(TrainError::Positions { positions, context });
    }
    let tokenizer = bundle.join(layout::TOKENIZER);
    let texts = Texts {
        tokenizer: &tokenizer,
        end: manifest.model.eos.first().copied(),
        vocab: manifest.model.vocab,
    };
    let mut stream = data::read(&sources.data, &texts)?;
    // Before a part is held out: it is the data that is too short then.
    data::check_length(stream.len(), context)?;
    let held_out = if sources.valid.is_empty() {
        let kept = stream.len() - stream.len() / 20;
        stream.split_off(kept)
    } else {
        data::read(&sources.valid, &texts)?
    };
    let held_out = Windows::new(held_out, context, seed)?.in_order(sources.validation_windows);
    Ok((Windows::new(stream, context, seed)?, held_out))
}

/// Puts the trained weights into the bundle. The checks of the conversion were of other weights: the manifest
/// forgets them first, so that at no time it vouches for what was not checked.
pub(super) fn put_back(
    bundle: &Path,
    manifest: &mut Manifest,
    trainer: &Trainer,
    weights: &Weights,
) -> Result<(), TrainError> {
    note_kept(bundle, "has its weights of before or the new ones, all of them");
    vouch_for_nothing(bundle, manifest)?;
    let flats = trainer.layout.groups.iter().map(|g| Ok((g, trainer.vector(&g.vector("parameters"))?)));
    let flats = flats.collect::<Result<Vec<_>, TrainError>>()?;
    let flats: Vec<_> = flats.iter().map(|(group, flat)| (*group, flat.as_slice())).collect();
    weights.replace(&flats)?;
    vouch_for_weights(bundle, manifest)
}

/// Forgets the checks and the digest, before weights change.
pub(super) fn vouch_for_nothing(bundle: &Path, manifest: &mut Manifest) -> Result<(), TrainError> {
    manifest.checks.clear();
    manifest.trained = None;
    replace_manifest(bundle, manifest)
}

/// Takes the digest of the weights as they are now.
pub(super) fn vouch_for_weights(bundle: &Path, manifest: &mut Manifest) -> Result<(), TrainError> {
    manifest.trained = Some(SourceFile::describe_whole(&bundle.join(layout::WEIGHTS))?);
    replace_manifest(bundle, manifest)
}

fn replace_manifest(bundle: &Path, manifest: &Manifest) -> Result<(), TrainError> {
    let path = bundle.join(layout::MANIFEST);
    let io = |source: std::io::Error| TrainError::Io { path: path.clone(), source };
    let text = manifest.to_json().map_err(|e| io(e.into()))?;
    replace_file(&path, text.as_bytes()).map_err(io)
}

struct Run<'a> {
    dir: PathBuf,
    options: &'a FinetuneOptions,
    trainer: &'a mut Trainer,
    held_out: Vec<Vec<i64>>,
}

impl Run<'_> {
    fn io(&self, file: &str, source: std::io::Error) -> TrainError {
        TrainError::Io { path: self.dir.join(file), source }
    }

    /// The last step that is done, and the perplexity before the first.
    fn begin(&mut self) -> Result<(usize, f64), TrainError> {
        let before = self.perplexity()?;
        if !self.options.resume {
            return Ok((0, before));
        }
        let checkpoint = Checkpoint::read(&self.dir, &self.identity())?;
        for (name, vector) in &checkpoint.vectors {
            self.trainer.set_vector(name, vector)?;
        }
        Ok((checkpoint.step, before))
    }

    /// What the steps depend on.
    fn identity(&self) -> String {
        let o = self.options;
        format!(
            "{:?} {:?} {:?} {:?} {:?} clip {} accumulate {} seed {} teacher {:?}",
            o.sources.data,
            o.scope,
            o.trainer.size,
            o.schedule,
            o.trainer.optimizer,
            o.trainer.clip_norm,
            o.trainer.accumulate,
            o.seed,
            o.teacher
        )
    }

    fn perplexity(&mut self) -> Result<f64, TrainError> {
        Ok(self.trainer.evaluate(&self.held_out)?.exp())
    }

    fn step(&mut self, step: usize, windows: &mut Windows) -> Result<Line, TrainError> {
        let line = self.trainer.advance(windows, step, self.options.schedule.rate(step))?;
        let validates =
            step.is_multiple_of(self.options.validate_every) || step == self.options.schedule.steps;
        let valid_perplexity = validates.then(|| self.perplexity()).transpose()?;
        Ok(Line { valid_perplexity, ..line })
    }

    fn checkpoint(&self, step: usize) -> Result<(), TrainError> {
        let mut vectors = BTreeMap::new();
        for group in &self.trainer.layout.groups {
            for part in CARRIED {
                let name = group.vector(part);
                let values = self.trainer.vector(&name)?;
                vectors.insert(name, values);
            }
        }
        Checkpoint { step, options: self.identity(), vectors }.write(&self.dir)?;
        note_kept(
            &self.dir.join(checkpoint::FILE),
            &format!("holds step {step} (hint: --resume goes on from it)"),
        );
        Ok(())
    }
}
