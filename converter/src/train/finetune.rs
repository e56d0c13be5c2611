//! Fine-tuning: cross-entropy over data until the steps are done, with checkpoints to go on from.

use super::checkpoint::{self, Checkpoint, CheckpointError};
use super::data::{self, Texts, Windows};
use super::identity::RunIdentity;
use super::metrics::{Line, Metrics};
use super::redraw::{Redraw, drawn_weights};
use super::schedule::Schedule;
use super::teacher::{Lesson, Teacher, TeacherOptions};
use super::trainer::{CARRIED, GraphFiles, RunGraphs, Trainer, TrainerOptions};
use super::weights::{Weights, WeightsError};
use super::{TrainError, memory, plot};
use crate::bundle::checksums::checksums;
use crate::bundle::lock::BundleLock;
use crate::bundle::replace::{NewFile, replace_file};
use crate::onnx::import;
use crate::provenance::opened;
use dijiang_format::files;
use dijiang_format::manifest::{BundleFile, Manifest, Site, SourceFile};
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::rewrite::{Options, added_weights, rewrite};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::TrainingError;
use dijiang_passes::training::lora::{Addition, add_low_rank, largest_rank};
use dijiang_passes::training::parameters::{Group, PARAMETERS, Parameter, ParameterLayout, Selection};
use dijiang_passes::training::step::{StepOptions, evaluation, training_step};
use dijiang_runtime::OrtRuntime;
use dijiang_runtime::temporary::note_kept;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

/// Where a run keeps its graphs, checkpoint and metrics, in the bundle.
pub const DIR: &str = files::RUNS;
/// The learning rate where nothing is said, and the steps in which it rises.
pub const RATE: f64 = 1e-3;
pub const WARM_UP: usize = 16;

/// Which weights are trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every weight.
    #[default]
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

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Attention => f.write_str("attention"),
            Self::Dijiang => f.write_str("dijiang"),
            Self::Lora(rank) => write!(f, "lora:{rank}"),
        }
    }
}

/// What a run trains, and its graphs in the bundle.
#[derive(Debug)]
pub struct Plan {
    pub layout: ParameterLayout,
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
    pub teacher: TeacherOptions,
    pub schedule: Schedule,
    pub seed: u64,
    /// Steps after which random features are drawn anew.
    pub redraw: Option<usize>,
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
    /// Whether the bundle's own softmax model taught, or another.
    pub teacher: Option<String>,
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
    let _lock = BundleLock::acquire(bundle)?;
    let mut manifest = Manifest::float_weights(bundle)?;
    opened::check_whole(bundle, &manifest)?;
    super::begin(bundle)?;
    let lesson = options.teacher.lesson(&manifest)?;
    let context = options.trainer.size.sequence;
    memory::check(&manifest, options.trainer.size, options.trainer.device)?;
    let data = read_data(bundle, &manifest, &options.sources, context as usize, options.seed)?;
    let identity = RunIdentity::of(bundle, (options, lesson.as_ref()), &data)?;
    let Data { mut windows, held_out, .. } = data;
    let dir = bundle.join(DIR);
    let weight = lesson.as_ref().map(|lesson| lesson.weight);
    let (scope, seed, redraws) = (options.scope, options.seed, options.redraw.is_some());
    let what = Trainable { scope, seed, teacher: weight, redraws };
    let Plan { layout, additions, graphs } = write_graphs(bundle, &manifest, &what, &options.trainer)?;
    let weights = Weights::with_additions(bundle, &layout, additions)?;
    let keeps = options.checkpoint_every < options.schedule.steps;
    super::disk::check(bundle, if keeps { layout.len() } else { 0 })?;
    let runtime = OrtRuntime::new()?;
    let load = |l: &Lesson| Teacher::load(&runtime, &l.source, (bundle, &manifest), &dir, &options.trainer);
    let teacher = lesson.as_ref().map(load).transpose()?;
    let mut trainer = Trainer::new(&graphs, layout, &weights, options.trainer.clone(), teacher)?;
    let redraw = options.redraw.map(|every| Redraw::new(&manifest.recipe.map, seed, every));
    let mut run = Run { dir, options, trainer: &mut trainer, held_out, identity, redraw };
    let (first, before) = run.begin()?;
    let mut metrics = Metrics::open(&run.dir, first).map_err(|e| run.io(super::metrics::FILE, e))?;
    let mut perplexity = before;
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
    replace_file(&path, plot::loss_curve(&metrics.lines)?.as_bytes())
        .map_err(|source| TrainError::Io { path, source })?;
    let tokens = metrics.lines.last().map_or(0, |l| l.tokens);
    let trained_parameters = trainer.layout.len();
    let when = format!("step {}", options.schedule.steps);
    let after = (first < options.schedule.steps).then_some(perplexity);
    let trained = Trained { trainer: &trainer, perplexity: after, when, command: "finetune" };
    put_back(bundle, &mut manifest, &weights, &trained)?;
    Ok(Finetuned {
        steps: options.schedule.steps,
        tokens,
        trained_parameters,
        teacher: lesson.map(|lesson| lesson.source.to_string()),
        valid_perplexity_before: before,
        valid_perplexity: perplexity,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What a run trains, and on what.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trainable {
    pub scope: Scope,
    /// That of additions.
    pub seed: u64,
    /// The weight of the divergence from a teacher, where there is one.
    pub teacher: Option<f64>,
    /// Whether random features are drawn anew.
    pub redraws: bool,
}

/// Writes a run's graphs into the bundle.
pub fn write_graphs(
    bundle: &Path,
    manifest: &Manifest,
    what: &Trainable,
    options: &TrainerOptions,
) -> Result<Plan, TrainError> {
    let Trainable { scope, seed, teacher, redraws } = *what;
    let mut model = model_graph(bundle, manifest, options.size.sequence)?;
    let additions = match scope {
        Scope::Lora(rank) => {
            let most = largest_rank(&model);
            if rank > most {
                return Err(TrainError::Rank { rank, most });
            }
            add_low_rank(&mut model, rank, seed).map_err(TrainingError::from)?
        }
        Scope::All | Scope::Attention | Scope::Dijiang => Vec::new(),
    };
    let mut layout = ParameterLayout::of(&model, &selection(scope, manifest))?;
    layout.drawn = redraws.then(|| drawn_weights(&model, &manifest.recipe.map)).transpose()?;
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
pub(crate) fn training_form(sequence: u64, chunk: u32) -> Form {
    match sequence > 2 * u64::from(chunk) {
        true => Form::Chunked(chunk),
        false => Form::Parallel,
    }
}

/// The form of the model that training computes.
pub(super) fn model_graph(bundle: &Path, manifest: &Manifest, sequence: u64) -> Result<Graph, TrainError> {
    let form = training_form(sequence, manifest.recipe.chunk);
    let file = match form {
        _ if !manifest.sites.iter().any(Site::is_linear) => files::SOFTMAX,
        Form::Chunked(_) => files::CHUNKED,
        _ => files::PARALLEL,
    };
    let mut graph = import::import(&bundle.join(file))?;
    if file != files::SOFTMAX && manifest.sites.iter().any(Site::keeps_window) {
        graph = without_rings(bundle, manifest, (&graph, form))?;
    }
    canonicalize(&mut graph)?;
    Ok(graph)
}

/// The same model with windows as masks: no text comes before one that is trained on, and a ring may be far longer.
fn without_rings(
    bundle: &Path,
    manifest: &Manifest,
    (model, form): (&Graph, Form),
) -> Result<Graph, TrainError> {
    let mut graph = import::import(&bundle.join(files::SOFTMAX))?;
    canonicalize(&mut graph)?;
    let linear: Vec<usize> = manifest.sites.iter().filter(|s| s.is_linear()).map(|s| s.layer).collect();
    let (recipe, seed, added) = (&manifest.recipe, manifest.seed, added_weights(model));
    rewrite(&mut graph, &Options { recipe, form, seed, layers: Some(&linear), added: Some(&added) })?;
    Ok(graph)
}

/// What a run reads, read.
#[derive(Debug)]
pub struct Data {
    /// To train on.
    pub windows: Windows,
    /// To validate on.
    pub held_out: Vec<Vec<i64>>,
    /// Of all tokens, those that are held out too.
    pub digest: String,
}

pub(super) fn read_data(
    bundle: &Path,
    manifest: &Manifest,
    sources: &Sources,
    context: usize,
    seed: u64,
) -> Result<Data, TrainError> {
    if let Some(positions) = manifest.model.positions.filter(|p| (*p as usize) < context) {
        return Err(TrainError::Positions { positions, context });
    }
    if sources.validation_windows == 0 {
        return Err(TrainError::NoValidation);
    }
    let tokenizer = bundle.join(files::TOKENIZER);
    let texts = Texts {
        tokenizer: &tokenizer,
        end: manifest.model.eos.first().copied(),
        vocab: manifest.model.vocab,
    };
    let mut stream = data::read(&sources.data, &texts, None)?;
    // Before a part is held out: it is the data that is too short then.
    data::check_length(stream.len(), context)?;
    let digest = data::digest(&stream);
    let held_out = if sources.valid.is_empty() {
        let kept = stream.len() - stream.len() / 20;
        stream.split_off(kept)
    } else {
        data::read(&sources.valid, &texts, None)?
    };
    let held_out = Windows::new(held_out, context, seed)?.in_order(sources.validation_windows);
    Ok(Data { windows: Windows::new(stream, context, seed)?, held_out, digest })
}

/// What a run made.
pub(super) struct Trained<'a> {
    pub(super) trainer: &'a Trainer,
    /// On what is validated, where weights changed.
    pub(super) perplexity: Option<f64>,
    /// What errors name.
    pub(super) when: String,
    /// What the manifest names.
    pub(super) command: &'static str,
}

/// Puts the trained weights into the bundle, if they are finite as they are stored and the bundle is the one that was
/// read. The checks of the conversion were of other weights: the manifest forgets them and the digests first, so that
/// at no time it vouches for what was not checked. All is written before any of it is put in place, so that a disk
/// that is full leaves the bundle as it was.
pub(super) fn put_back(
    bundle: &Path,
    manifest: &mut Manifest,
    weights: &Weights,
    trained: &Trained<'_>,
) -> Result<(), TrainError> {
    note_kept(bundle, "has its weights of before or the new ones, all of them");
    let Trained { trainer, perplexity, when, command } = trained;
    weights.check_unchanged()?;
    let flats = trainer.layout.inputs().map(|g| Ok((g, trainer.vector(&g.vector(PARAMETERS))?)));
    let flats = flats.collect::<Result<Vec<_>, TrainError>>()?;
    let flats: Vec<_> = flats.iter().map(|(group, flat)| (*group, flat.as_slice())).collect();
    let diverged = |source| TrainError::Diverged { when: when.clone(), source };
    let new = weights.with(&flats).map_err(diverged)?;
    if let Some(perplexity) = perplexity.filter(|perplexity| !perplexity.is_finite()) {
        return Err(TrainError::Worthless { when: when.clone(), loss: perplexity.ln() });
    }
    let before = manifest.digests.take();
    manifest.checks.clear();
    manifest.runtimes.clear();
    manifest.trained = None;
    manifest.put_file(BundleFile { name: files::WEIGHTS.to_owned(), bytes: None, sha256: None });
    let first = write_manifest(bundle, manifest)?;
    let file = weights.write_beside(&new)?;
    let names = new.names();
    let after = weights.digests(new, before.clone())?;
    manifest.add_training(command, before.map_or(names, |before| before.differences(&after)));
    manifest.digests = Some(after);
    let described = SourceFile::describe_whole(&file.path())?;
    let described = SourceFile { name: files::WEIGHTS.to_owned(), ..described };
    manifest.put_file(described.clone().into());
    manifest.trained = Some(described);
    let mut new = vec![first, file, write_manifest(bundle, manifest)?];
    new.extend(write_checksums(bundle, manifest)?);
    weights.check_unchanged()?;
    let Err((path, source)) = NewFile::place_all(&new) else { return Ok(()) };
    if let Err(e) = weights.restore_manifest() {
        tracing::warn!("{}: its digests could not be put back: {e}", bundle.join(files::MANIFEST).display());
    }
    Err(TrainError::Io { path, source })
}

/// Beside the one that is there.
fn write_manifest(bundle: &Path, manifest: &Manifest) -> Result<NewFile, TrainError> {
    let path = bundle.join(files::MANIFEST);
    let io = |source: std::io::Error| TrainError::Io { path: path.clone(), source };
    let text = manifest.to_json().map_err(|e| io(e.into()))?;
    NewFile::write(&path, text.as_bytes()).map_err(io)
}

/// The same, where the bundle has them.
fn write_checksums(bundle: &Path, manifest: &Manifest) -> Result<Option<NewFile>, TrainError> {
    let path = bundle.join(files::CHECKSUMS);
    if !path.exists() {
        return Ok(None);
    }
    let io = |source: std::io::Error| TrainError::Io { path: path.clone(), source };
    let text = manifest.to_json().map_err(|e| io(e.into()))?;
    NewFile::write(&path, checksums(manifest, &text).as_bytes()).map(Some).map_err(io)
}

struct Run<'a> {
    dir: PathBuf,
    options: &'a FinetuneOptions,
    trainer: &'a mut Trainer,
    held_out: Vec<Vec<i64>>,
    identity: RunIdentity,
    redraw: Option<Redraw>,
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
        let checkpoint = Checkpoint::read(&self.dir, &self.identity)?;
        let carried =
            self.trainer.layout.groups.iter().flat_map(|g| CARRIED.map(|part| (g.vector(part), g.len())));
        let found = checkpoint.vectors.iter().map(|(name, vector)| (name.clone(), vector.len()));
        if carried.collect::<BTreeMap<_, _>>() != found.collect::<BTreeMap<_, _>>() {
            let path = self.dir.join(checkpoint::FILE);
            let reason = "its vectors are not those of the run that it names".to_owned();
            return Err(CheckpointError::Read { path, reason }.into());
        }
        for (name, vector) in &checkpoint.vectors {
            self.trainer.set_vector(name, vector)?;
        }
        self.draw(checkpoint.step)?;
        Ok((checkpoint.step, before))
    }

    fn draw(&mut self, step: usize) -> Result<(), TrainError> {
        self.redraw.as_mut().map_or(Ok(()), |redraw| redraw.before(step, self.trainer))
    }

    fn perplexity(&mut self) -> Result<f64, TrainError> {
        Ok(self.trainer.evaluate(&self.held_out)?.exp())
    }

    fn step(&mut self, step: usize, windows: &mut Windows) -> Result<Line, TrainError> {
        self.draw(step)?;
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
                if part == PARAMETERS {
                    check_finite(step, group, &values)?;
                }
                vectors.insert(name, values);
            }
        }
        Checkpoint { step, run: self.identity.clone(), vectors }.write(&self.dir)?;
        note_kept(
            &self.dir.join(checkpoint::FILE),
            &format!("holds step {step} (hint: --resume goes on from it)"),
        );
        Ok(())
    }
}

/// A checkpoint that nothing can go on from does not take the place of the one before.
fn check_finite(step: usize, group: &Group, values: &[f32]) -> Result<(), TrainError> {
    let is_finite = |(at, p): &(usize, &Parameter)| values[*at..*at + p.len()].iter().all(|x| x.is_finite());
    let Some((_, parameter)) = group.offsets().find(|place| !is_finite(place)) else { return Ok(()) };
    let (name, what) = (parameter.name.clone(), "NaN or infinity".to_owned());
    Err(TrainError::Diverged { when: format!("step {step}"), source: WeightsError::NotFinite { name, what } })
}
