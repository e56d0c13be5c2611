//! The conversion: a source in, a verified bundle out, written completely or not at all.

mod cases;
pub mod compile;
pub mod estimate;
pub mod genai;
pub mod inputs;
pub(crate) mod losses;
pub(crate) mod manifest;
pub mod quantization;
pub mod refusal;
pub mod requantize;
pub mod scan;
mod settled;
pub mod source;
pub mod state_budget;
pub mod stop_after;

use crate::bundle::atomic::{BundleError, NewBundle};
use crate::bundle::checksums::checksums;
use crate::bundle::link::{LinkError, MappedFile};
use crate::bundle::room::{self, FreeSpace, NoRoom};
use crate::bundle::softmax_model::SoftmaxError;
use crate::bundle::states::states;
use crate::bundle::stored_file;
use crate::bundle::weights::{LayoutError, WeightFile, Written};
use crate::checkpoint::own_attention::{OwnAttention, RECIPE};
use crate::checkpoint::{ModelMeta, Text, Texts};
use crate::convert::compile::{Bound, CompileOptions, Compiled, Forms, compile_with};
use crate::convert::estimate::{BOUND, Beside, FORMS, FORMS_INT4, SOFTMAX, parameters};
use crate::convert::inputs::{Input, InputError};
use crate::convert::manifest::{Origin, copied};
use crate::convert::quantization::QuantizeError;
use crate::convert::refusal::{
    Others, check_added, check_is_whole, check_linear, check_names, check_sites, check_source, of_pipeline,
    said,
};
use crate::convert::source::{Source, SourceError};
use crate::convert::state_budget::StateBudget;
use crate::onnx::export::{ExportError, ExportOptions, ExternalWeights, export, opset_of};
use crate::provenance::opened::{self, NotAsWritten};
use crate::recipes::RecipeFileError;
use crate::report::progress::{Estimate, Progress, Say};
use crate::train::TrainError;
use crate::train::data::DataError;
use crate::train::finetune::{Trainable, write_graphs};
use crate::train::teacher::TeacherOptions;
use crate::train::trainer::{BATCH, CONTEXT, TrainerOptions};
use crate::verify::{Verification, VerifyError, VerifyOptions, quantization_drift, reference, verify};
use bytesize::ByteSize;
use dijiang_format::digest::WeightDigests;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{BundleFile, Manifest, ManifestError, SourceFile, SourceKind};
use dijiang_format::names::{IDS, LOGITS};
use dijiang_format::quantization::Quantization;
use dijiang_format::recipe::{Attention, Recipe};
use dijiang_format::regular;
use dijiang_format::target::{PORTABLE_OPSET, Target};
use dijiang_format::words::counted;
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::attention::rewrite::{AddedWeights, RewriteError, SiteReport, WithoutCache};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::{ReadError, Tensor};
use dijiang_passes::pipeline::PipelineError;
use dijiang_passes::training::TrainingError;
use dijiang_passes::training::specialize::Size;
use dijiang_runtime::RuntimeError;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How to convert.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
pub struct ConvertOptions {
    pub recipe: Recipe,
    /// Whether nobody asked for that recipe: a source that brings an attention of its own along has its way.
    pub is_default_recipe: bool,
    pub target: Target,
    /// Element type of weights and activations; the source's where it is `None`.
    pub dtype: Option<DType>,
    /// How the weights of linear layers are stored; in that element type where it is `None`.
    pub weights: Option<Quantization>,
    /// Layers to rewrite; all where it is `None`.
    pub layers: Option<Vec<usize>>,
    /// How many of them stay softmax, of those that look far.
    pub keep: Option<scan::Keep>,
    pub seed: u64,
    /// Write the training graphs too, of the defaults of a run.
    pub train: bool,
    /// Replace a bundle that is there.
    pub force: bool,
    /// What says whether the disk can hold the bundle: [`room::free_space`].
    pub free_space: FreeSpace,
    /// Weights that stay as they are stay in the files of the source, which the bundle links to.
    pub link: bool,
    /// Write the digests of all files as `sha256sum` reads them.
    pub checksums: bool,
    /// `None` writes without a proof.
    pub verify: Option<VerifyOptions>,
}

impl ConvertOptions {
    /// With this recipe, asked for, and else as the command has it where nothing is said, but without a proof.
    #[must_use]
    pub fn of(recipe: Recipe) -> Self {
        Self {
            recipe,
            is_default_recipe: false,
            target: Target::Ort,
            dtype: None,
            weights: None,
            layers: None,
            keep: None,
            seed: 0,
            train: false,
            force: false,
            free_space: room::free_space,
            link: false,
            checksums: false,
            verify: None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Converted {
    /// What the attentions became.
    pub recipe: Recipe,
    pub sites: Vec<SiteReport>,
    pub dropped_inputs: Vec<String>,
    /// Inputs that the source does not have, besides the state.
    pub added_inputs: Vec<String>,
    /// Attentions that were not recognised, and so stay softmax.
    pub misses: Vec<NearMiss>,
    /// What is worth knowing of how the source was read.
    pub notes: Vec<String>,
    /// What is likely wrong with the source.
    pub warnings: Vec<String>,
    pub dtype: DType,
    /// What was told before anything was written.
    pub estimate: Estimate,
    pub bytes_written: u64,
    pub verification: Option<Verification>,
    /// Whether the bundle is in place: not where a check failed.
    pub written: bool,
}

/// A conversion failed; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Recipe(#[from] RecipeFileError),
    #[error(
        "{}: its attention is linear already, in the authors' released form, and {asked} would leave that out (hint: take {asked} out; --recipe {RECIPE} is what it is)",
        path.display()
    )]
    OwnAttention { path: PathBuf, asked: String },
    #[error("{}: {source}", path.display())]
    Quantize { path: PathBuf, source: Box<QuantizeError> },
    #[error(transparent)]
    Compile(#[from] PipelineError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}: {source}", path.display())]
    FedByToken { path: PathBuf, source: RewriteError },
    #[error(
        "{}: this is {what} already, and what its conversion added would be left out (hint: convert the model that the bundle was made of)",
        path.display()
    )]
    Bundled { path: PathBuf, what: &'static str },
    #[error("{family}: {} found, expected {expected}; {miss}", counted(*found, "attention"))]
    MissingSites { family: &'static str, found: usize, expected: usize, miss: String },
    #[error("{}: {}", path.display(), none_converted(misses.len()))]
    NoSites { path: PathBuf, misses: Vec<NearMiss> },
    #[error("{}: {kept} (hint: export the model with its cache, `past_key_values`, or keep all of its attention with --recipe softmax; --no-verify writes a graph for whole sequences)", path.display())]
    KeptWithoutCache { path: PathBuf, kept: WithoutCache },
    #[error("{}: the model is served token by token, by its output `{LOGITS}`; its outputs are {outputs} (hint: export it with its language-model head, as `optimum-cli export onnx --task text-generation` does)", path.display())]
    NoLogits { path: PathBuf, outputs: String },
    #[error("{}: the model is served token by token, by its input `{IDS}`; its inputs are {inputs} (hint: export it with that name)", path.display())]
    NoIds { path: PathBuf, inputs: String },
    #[error("{}: it is {what}, by its {inputs}, and such models are not converted (hint: take a model that is a decoder or an encoder alone, such as GPT-2 or BERT)", path.display())]
    EncoderDecoder { path: PathBuf, what: &'static str, inputs: String },
    #[error("{}: the model is served token by token, and nothing gives it its {inputs} (hint: export it with `{IDS}`, `attention_mask`, `position_ids` and `past_key_values` alone)", path.display())]
    OtherInputs { path: PathBuf, inputs: String },
    #[error(
        "{}: none of its {} would be linear{} (hint: {})",
        path.display(), counted(*attentions, "attention"), said(kept), others.hint(*attentions)
    )]
    NothingLinear {
        path: PathBuf,
        attentions: usize,
        /// The name of each, and why it stays.
        kept: Vec<(String, String)>,
        /// The recipes that would convert it.
        others: Others,
    },
    #[error("{}: what its conversion added is not what this version adds (hint: convert the model anew)", bundle.display())]
    OldBundle { bundle: PathBuf },
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("the training graphs: {0}")]
    Train(#[from] Box<TrainError>),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(
        "{}: which layers to keep cannot be measured, as the loss of the model as it came is no number (hint: name them in a recipe, `softmax_layers: […]`)",
        path.display()
    )]
    NothingToKeep { path: PathBuf },
    #[error(
        "{}: its attention is linear already, in the authors' released form: there is no softmax whose reach could be scanned (hint: `dijiang convert {} -o BUNDLE`)",
        path.display(), path.display()
    )]
    NothingToScan { path: PathBuf },
    #[error(
        "--max-state {budget}: the state of one sequence is {} at the least (hint: --max-state {}@{}, or a recipe with a smaller state)",
        ByteSize(*least), least, budget.tokens
    )]
    StateBudget { budget: StateBudget, least: u64 },
    #[error(
        "{}: of a bundle is measured which layers should have stayed softmax, and how many was not said (hint: `dijiang scan {} --keep auto`, or --max-state 8MiB@4096)",
        path.display(), path.display()
    )]
    HowManyToKeep { path: PathBuf },
    #[error("the graph that is scanned: {0}")]
    Scan(#[from] TrainingError),
    #[error("the bundle that is scanned: {0}")]
    Softmax(#[from] SoftmaxError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the manifest: {0}")]
    Json(#[from] serde_json::Error),
}

impl ConvertError {
    /// The same, naming files in `target` that were to be there and are still in `from`.
    fn placed(mut self, from: &Path, target: &Path) -> Self {
        let path = match &mut self {
            Self::Io { path, .. } => path,
            Self::Train(error) => match error.as_mut() {
                TrainError::Io { path, .. } => path,
                _ => return self,
            },
            _ => return self,
        };
        if let Ok(name) = path.strip_prefix(from) {
            *path = target.join(name);
        }
        self
    }
}

/// Why none of so many attentions, which were not recognised, can be converted.
fn none_converted(missed: usize) -> String {
    match missed {
        0 => "no attention was found in it: no softmax that weighs what another product gives (hint: --recipe softmax keeps the model as it is)".to_owned(),
        n => format!(
            "none of its {} can be converted (hint: `dijiang inspect` says why; --recipe softmax keeps them)",
            counted(n, "attention")
        ),
    }
}

/// Converts the model at `source` to a bundle at `target`.
pub fn convert(
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    progress: &mut dyn Progress,
) -> Result<Converted, ConvertError> {
    progress.stage("reading the source");
    check_source(source)?;
    let mut opened = source::open(source, options.dtype)?;
    opened.warnings.extend(left_out(&opened));
    let own = opened.own_attention.take();
    let options = settled::settled(source, options, (&opened.meta, own.as_ref()))?;
    let conversion = Conversion { own: own.as_ref(), ..Conversion::new(source, target, &options) };
    convert_opened(opened, conversion, progress)
}

/// What is wrong with a source, as far as that shows without its weights or its graph.
pub fn look(source: &Path) -> Result<(), ConvertError> {
    check_source(source)?;
    Ok(source::look(source)?)
}

/// What the bundle will lack that was there, or that texts need.
fn left_out(opened: &Source) -> Vec<String> {
    let dir = opened.texts.dir().display();
    let lacks_tokenizer =
        opened.kind == SourceKind::Checkpoint && opened.texts.find(files::TOKENIZER).is_none();
    let tokenizer = lacks_tokenizer.then(|| match opened.texts.lack() {
        Some(why) => why.to_owned(),
        None => format!(
            "{dir}: it has no {}, which `generate` and training read texts with (hint: `AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')` of transformers writes one; then convert it again)",
            files::TOKENIZER
        ),
    });
    let added = (opened.added > 0).then(|| {
        format!(
            "{dir}: {} of an earlier conversion are left out (hint: their bundle serves them; `dijiang quantize` keeps them)",
            counted(opened.added, "tensor")
        )
    });
    tokenizer.into_iter().chain(added).collect()
}

/// What a conversion would take. The source is read and compiled; nothing is written.
pub fn estimate(source: &Path, options: &ConvertOptions) -> Result<Estimate, ConvertError> {
    check_source(source)?;
    let Source { mut graph, meta, maps, texts, own_attention, .. } = source::open(source, options.dtype)?;
    let options = &settled::settled(source, options, (&meta, own_attention.as_ref()))?;
    let parameters = parameters(&graph);
    quantize(source, options, &mut graph)?;
    let added = own_attention.as_ref().map(|own| &own.added);
    let compiled = compile_with(graph, &CompileOptions::of(options), added)
        .map_err(|error| of_pipeline(source, error))?;
    let maps = if options.link { maps.as_slice() } else { &[] };
    let weights = plan_weights(&[&compiled.source, &compiled.model], maps)?;
    let writer = ModelWriter {
        dir: Path::new(""),
        source,
        maps,
        target: source,
        options,
        compiled: &compiled,
        parameters,
        texts: &texts,
        positions: manifest::positions(&options.recipe, &meta),
        inputs: &[],
        written: Mutex::default(),
    };
    let estimate = writer.estimate(&weights)?;
    Ok(if scan::is_needed(options, meta.layers) { estimate.scanned(parameters) } else { estimate })
}

/// Stores the weights of a graph as the options have it. Returns the graph as it was, where anything changed.
fn quantize(
    source: &Path,
    options: &ConvertOptions,
    graph: &mut Graph,
) -> Result<Option<Graph>, ConvertError> {
    let how = options.weights.map(|how| quantization::apply(how, graph, options.target)).transpose();
    how.map_err(|e| ConvertError::Quantize { path: source.to_owned(), source: Box::new(e) })
}

impl<'a> CompileOptions<'a> {
    fn of(options: &'a ConvertOptions) -> Self {
        let ConvertOptions { recipe, target, seed, layers, .. } = options;
        Self { recipe, target: *target, seed: *seed, layers: layers.as_deref() }
    }
}

/// What a bundle brings along that is converted again.
pub(crate) struct Before {
    pub(crate) manifest: Manifest,
    /// What the conversion had added, by name.
    pub(crate) added: AddedWeights,
}

/// Converts a model that is open.
pub(crate) fn convert_opened(
    mut opened: Source,
    mut conversion: Conversion<'_>,
    progress: &mut dyn Progress,
) -> Result<Converted, ConvertError> {
    let added = conversion.before.into_iter().flat_map(|before| before.added.values());
    conversion.read = opened.graph.consts().map(|(_, _, tensor)| tensor).chain(added).cloned().collect();
    let target = conversion.target;
    // Without it nothing is replaced, and the call is refused.
    if conversion.before.is_none() && conversion.options.force {
        training_lost(target).into_iter().for_each(|line| progress.say(Say::Warning, &line));
    }
    let bundle = NewBundle::begin(target, conversion.options.force)?;
    let from = bundle.path().to_owned();
    let scanned = scan::is_needed(conversion.options, opened.meta.layers).then(|| parameters(&opened.graph));
    let wide =
        scan::measured_recipe(&mut opened, conversion.source, (bundle.path(), conversion.options), progress);
    if wide.is_err() {
        stored_file::check(conversion.read.iter())?;
    }
    let recipe = wide.map_err(|error| error.placed(&from, target))?;
    let options = ConvertOptions { recipe, ..conversion.options.clone() };
    let conversion = Conversion { options: &options, ..conversion };
    let written = write_bundle(opened, &conversion, bundle, progress).map(|converted| Converted {
        estimate: scanned.map_or(converted.estimate, |parameters| converted.estimate.scanned(parameters)),
        ..converted
    });
    // Where something could not be read, whatever came of it is not the reason. A bundle that is in place was looked at
    // before, and may have taken the place of what it was made of.
    if !written.as_ref().is_ok_and(|converted| converted.written) {
        stored_file::check(conversion.read.iter())?;
    }
    written.map_err(|error| error.placed(&from, target))
}

/// What is said of a trained bundle that will be replaced.
fn training_lost(target: &Path) -> Option<String> {
    let manifest = Manifest::read(target).ok()?;
    let runs = manifest.training.map(|training| training.runs).filter(|runs| !runs.is_empty())?;
    let commands: BTreeSet<String> = runs.into_iter().map(|run| run.command).collect();
    let commands: Vec<String> = commands.into_iter().collect();
    Some(format!(
        "{}: what {} trained is in the bundle that is replaced, and goes with it (hint: Ctrl-C, and another -o, keeps it)",
        target.display(),
        commands.join(" and ")
    ))
}

/// What is converted to what.
pub(crate) struct Conversion<'a> {
    /// What errors name.
    source: &'a Path,
    target: &'a Path,
    options: &'a ConvertOptions,
    pub(crate) before: Option<&'a Before>,
    /// The attention that the source brings along.
    own: Option<&'a OwnAttention>,
    /// What the weights are made of.
    read: Vec<Tensor>,
}

impl<'a> Conversion<'a> {
    pub(crate) fn new(source: &'a Path, target: &'a Path, options: &'a ConvertOptions) -> Self {
        Self { source, target, options, before: None, own: None, read: Vec::new() }
    }
}

/// The bundle is committed, unless a check failed.
fn write_bundle(
    opened: Source,
    conversion: &Conversion<'_>,
    bundle: NewBundle,
    progress: &mut dyn Progress,
) -> Result<Converted, ConvertError> {
    let Conversion { source, target, options, before, own, .. } = *conversion;
    let Source {
        kind,
        mut graph,
        meta,
        dtype,
        stored,
        files,
        maps,
        texts,
        notes,
        warnings: mut doubts,
        hub,
        ..
    } = opened;
    if kind == SourceKind::Onnx {
        check_is_whole(&graph, source)?;
    }
    progress.stage("compiling");
    let parameters = parameters(&graph);
    let float = quantize(source, options, &mut graph)?;
    let how = CompileOptions::of(options);
    let added = before.map(|before| &before.added).or(own.map(|own| &own.added));
    let compiled = compile_with(graph, &how, added).map_err(|error| of_pipeline(source, error))?;
    check_sites(&compiled.report, &meta, kind)?;
    if let Some(added) = added {
        check_added(&compiled.model, added, source)?;
    }
    // A bundle that is converted again was told so the first time.
    if before.is_none() && options.recipe.attention != Attention::Softmax {
        check_linear(&compiled.report, &compiled.source, options.layers.as_deref(), source)?;
    }
    if let Some(kept) = compiled.report.without_cache.clone().filter(|_| options.verify.is_some()) {
        return Err(ConvertError::KeptWithoutCache { path: source.to_owned(), kept });
    }
    check_names(&compiled.model, source)?;
    let maps = if options.link { maps.as_slice() } else { &[] };
    let writer = ModelWriter {
        dir: bundle.path(),
        source,
        maps,
        target,
        options,
        compiled: &compiled,
        parameters,
        texts: &texts,
        positions: manifest::positions(&options.recipe, &meta),
        inputs: &files,
        written: Mutex::default(),
    };
    let WrittenModel { estimate, bytes: mut bytes_written, warnings, linked, digests, sources } =
        writer.write_weights_and_graphs(&how, progress)?;
    if let Some(before) = before {
        check_weights(&sources, &before.manifest, source)?;
    }
    bytes_written += writer.copy_texts()?;
    bytes_written += writer.write_genai_config(&meta)?;
    let own_attention = own.is_some();
    let origin = Origin { kind, stored, files: sources, meta: &meta, dtype, own_attention, hub };
    let mut manifest = manifest::of_compiled(&compiled, options, &origin);
    manifest.linked = linked;
    manifest.digests = Some(digests);
    manifest.files = writer.files();
    if let Some(Before { manifest: before, .. }) = before {
        manifest.source = before.source.clone();
        manifest.trained.clone_from(&before.trained);
        manifest.training.clone_from(&before.training);
        manifest.options.clone_from(&before.options);
    }
    bytes_written += writer.write_manifest(&manifest)?;
    if options.train {
        progress.stage("writing the training graphs");
        bytes_written += write_training(bundle.path(), &manifest)?;
    }
    let verification = match &options.verify {
        Some(how) => {
            let mut found = verify(bundle.path(), &with_reference(how, texts.dir()), progress)?;
            if let Some(float) = &float {
                found.checks.push(quantization_drift(
                    float,
                    &compiled.source,
                    &manifest,
                    how.seed,
                    progress,
                )?);
            }
            Some(found)
        }
        None => None,
    };
    let written = verification.as_ref().is_none_or(|v| v.ok);
    if written {
        if let Some(verification) = &verification {
            manifest.checks = verification.for_manifest();
            manifest.runtimes.clone_from(&verification.runtimes);
            writer.write_manifest(&manifest)?;
        }
        if options.checksums {
            let text = checksums(&manifest, &manifest.to_json()?);
            bytes_written += write_file(bundle.path(), files::CHECKSUMS, text.as_bytes())?;
        }
        progress.stage("making it durable");
        stored_file::check(conversion.read.iter())?;
        bundle.commit()?;
    }
    progress.done();
    let Compiled { report, model, .. } = compiled;
    let kept = report.without_cache.iter().map(WithoutCache::to_string);
    let warnings: Vec<String> = warnings.into_iter().chain(kept).collect();
    let misses = report.missed().cloned().collect();
    // The reader of ONNX has looked for numbers that are not finite too.
    let notes = notes.into_iter().filter(|note| !warnings.contains(note)).chain(report.notes);
    let notes = notes.chain(genai::refusal(&model)).collect();
    doubts.extend(warnings);
    Ok(Converted {
        recipe: options.recipe.clone(),
        misses,
        warnings: doubts,
        sites: report.sites,
        dropped_inputs: report.dropped_inputs,
        added_inputs: report.added_inputs,
        dtype,
        notes,
        estimate,
        bytes_written,
        verification,
        written,
    })
}

/// The graphs of a run over all weights, of the default size or of as many tokens as the model has positions.
/// Returns the bytes written.
fn write_training(bundle: &Path, manifest: &Manifest) -> Result<u64, ConvertError> {
    let sequence = training_context(manifest.model.positions);
    let options = TrainerOptions { size: Size { batch: BATCH, sequence }, ..TrainerOptions::default() };
    let teacher = TeacherOptions::default().lesson(manifest).map_err(Box::new)?.map(|lesson| lesson.weight);
    let what = Trainable { teacher, ..Trainable::default() };
    let plan = write_graphs(bundle, manifest, &what, &options).map_err(Box::new)?;
    let size = |path: &PathBuf| {
        let file = std::fs::metadata(path);
        file.map(|file| file.len()).map_err(|source| ConvertError::Io { path: path.clone(), source })
    };
    plan.graphs.paths().map(size).sum()
}

fn training_context(positions: Option<u64>) -> u64 {
    positions.map_or(CONTEXT, |positions| positions.min(CONTEXT))
}

/// A checkpoint that comes with reference logits is compared with them.
fn with_reference(how: &VerifyOptions, source: &Path) -> VerifyOptions {
    let beside = Some(source.join(reference::FILE)).filter(|path| path.exists());
    VerifyOptions { reference: how.reference.clone().or(beside), ..how.clone() }
}

/// Weights that changed since they were written get no digests of their own.
fn check_weights(read: &[SourceFile], before: &Manifest, bundle: &Path) -> Result<(), NotAsWritten> {
    let recorded = before.file(files::WEIGHTS).and_then(|file| file.sha256.as_ref());
    let found = read.iter().find(|file| file.name == files::WEIGHTS).and_then(|file| file.sha256.as_ref());
    match recorded.is_none_or(|recorded| found == Some(recorded)) {
        true => Ok(()),
        false => Err(NotAsWritten::new(bundle, files::WEIGHTS, opened::OTHER)),
    }
}

struct ModelWriter<'a> {
    dir: &'a Path,
    source: &'a Path,
    /// The files of the source that weights stay in.
    maps: &'a [MappedFile],
    /// Where `dir` goes once it is complete.
    target: &'a Path,
    options: &'a ConvertOptions,
    compiled: &'a Compiled,
    /// Of the source.
    parameters: u64,
    /// Its tokenizer and other texts.
    texts: &'a Texts,
    /// How many positions it has, where it has so many and no more.
    positions: Option<u64>,
    inputs: &'a [Input],
    /// What was written so far.
    written: Mutex<Vec<BundleFile>>,
}

/// The weights and graphs of a bundle.
struct WrittenModel {
    estimate: Estimate,
    bytes: u64,
    /// What is wrong with the weights.
    warnings: Vec<String>,
    /// Names of the files that are the source's.
    linked: Vec<String>,
    digests: WeightDigests,
    sources: Vec<SourceFile>,
}

impl ModelWriter<'_> {
    /// The disk is busy with the weights while the other forms are compiled.
    fn write_weights_and_graphs(
        &self,
        how: &CompileOptions<'_>,
        progress: &mut dyn Progress,
    ) -> Result<WrittenModel, ConvertError> {
        let weights = plan_weights(&[&self.compiled.source, &self.compiled.model], self.maps)?;
        let linked = self.link(&weights)?;
        let estimate = self.estimate(&weights)?;
        progress.estimate(&estimate);
        room::check(self.dir, self.target, estimate.disk, self.options.free_space)?;
        let (written, (forms, sources)) = rayon::join(
            || write_weights(self.dir, &weights, progress),
            || {
                let forms = || Ok::<_, ConvertError>((self.compiled.forms(how)?, self.compiled.bound(how)?));
                rayon::join(forms, || inputs::describe(self.inputs))
            },
        );
        let Written { warnings, digests } = written?;
        progress.stage("writing the graphs");
        let (forms, bound) = forms?;
        let (graphs, whole) = rayon::join(
            || self.write_graphs(&forms, bound.as_ref(), &weights),
            || SourceFile::describe_whole(&self.dir.join(files::WEIGHTS)),
        );
        let (bytes, sources) = (weights.size() + graphs?, sources?);
        self.wrote(whole?.into());
        self.wrote_links(&linked, &sources);
        Ok(WrittenModel { estimate, bytes, warnings, linked, digests, sources })
    }

    fn wrote(&self, file: BundleFile) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }

    /// A link is the file that it was made of.
    fn wrote_links(&self, linked: &[String], sources: &[SourceFile]) {
        for name in linked {
            let is_of = |source: &&SourceFile| format!("{}{}", files::LINKED, source.name) == *name;
            if let Some(source) = sources.iter().find(is_of) {
                self.wrote(BundleFile { name: name.clone(), ..source.clone().into() });
            }
        }
    }

    fn estimate(&self, weights: &WeightFile) -> Result<Estimate, ConvertError> {
        let Compiled { model, report, .. } = self.compiled;
        let serving = graph_bytes(self.options.target.opset(), model, weights)?.len() as u64;
        let is_linear = report.sites.iter().any(|site| site.why_kept.is_none());
        let graphs: &[u64] = match (is_linear, self.options.target, self.options.weights) {
            (false, ..) => &[SOFTMAX],
            (true, Target::Ort, Some(Quantization::Int4)) => &[SOFTMAX, FORMS_INT4, BOUND],
            (true, _, Some(Quantization::Int4)) => &[SOFTMAX, FORMS_INT4],
            (true, Target::Ort, None) => &[SOFTMAX, FORMS, BOUND],
            (true, _, None) => &[SOFTMAX, FORMS],
        };
        let texts = copied().map(|name| self.texts.size(name)).sum();
        let attentions = (report.sites.len() + report.misses.len()) as u64;
        let training = match self.options.train {
            true => estimate::training(serving, attentions, BATCH, training_context(self.positions)),
            false => 0,
        };
        let beside = Beside { serving, graphs, attentions, texts, training };
        let written = Estimate::of(weights.size(), &beside, model);
        Ok(match self.options.verify {
            Some(_) => written.proved(self.parameters, &self.options.recipe),
            None => written,
        })
    }

    /// Links the files of the source that weights stay in, and returns what they are called here.
    fn link(&self, weights: &WeightFile) -> Result<Vec<String>, ConvertError> {
        if !self.options.link {
            return Ok(Vec::new());
        }
        let read: Vec<&MappedFile> = self.maps.iter().filter(|f| weights.reads(&f.link_name())).collect();
        if read.is_empty() {
            let hint = match self.maps {
                [] => "; only those of a safetensors checkpoint can",
                _ => ", or --dtype",
            };
            return Err(LinkError::Nothing { path: self.source.to_owned(), hint }.into());
        }
        read.iter().try_for_each(|file| file.link_into(self.dir))?;
        Ok(read.iter().map(|file| file.link_name()).collect())
    }

    /// Returns the bytes written.
    fn write_graphs(
        &self,
        forms: &Forms,
        bound: Option<&Bound>,
        weights: &WeightFile,
    ) -> Result<u64, ConvertError> {
        let mut graphs = vec![
            (files::MODEL, self.options.target.opset(), &self.compiled.model),
            (files::SOFTMAX, PORTABLE_OPSET, &forms.softmax),
        ];
        if let Some(linear) = &forms.linear {
            graphs.push((files::PARALLEL, PORTABLE_OPSET, &linear.parallel));
            graphs.push((files::CHUNKED, PORTABLE_OPSET, &linear.chunked));
        }
        if let Some(bound) = bound {
            let opset = self.options.target.opset();
            graphs.push((files::PREFILL, opset, &bound.prefill));
            graphs.push((files::DECODE, opset_of(&bound.decode, opset), &bound.decode));
        }
        let write = |(name, opset, graph): &(&str, i64, &Graph)| {
            self.write(name, &graph_bytes(*opset, graph, weights)?)
        };
        graphs.par_iter().map(write).sum()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<u64, ConvertError> {
        self.wrote(BundleFile::of(name, bytes));
        write_file(self.dir, name, bytes)
    }

    /// What was written, in the order of names.
    fn files(&self) -> Vec<BundleFile> {
        let mut files = self.written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        files.sort();
        files
    }

    /// The files beside the weights that other tools read.
    fn copy_texts(&self) -> Result<u64, ConvertError> {
        let mut written = 0;
        for name in copied() {
            written += match self.texts.find(name) {
                None => 0,
                Some(Text::Made(text)) => self.write(name, text)?,
                Some(Text::At(from)) => {
                    let text =
                        regular::read(&from).map_err(|source| ConvertError::Io { path: from, source })?;
                    self.write(name, &text)?
                }
            };
        }
        Ok(written)
    }

    /// For what generates: an encoder has nothing to carry on from.
    fn write_genai_config(&self, meta: &ModelMeta) -> Result<u64, ConvertError> {
        if states(&self.compiled.model).is_empty() || genai::refusal(&self.compiled.model).is_some() {
            return Ok(0);
        }
        let config = genai::config(meta, &self.compiled.model);
        self.write(files::GENAI_CONFIG, (serde_json::to_string_pretty(&config)? + "\n").as_bytes())
    }

    fn write_manifest(&self, manifest: &Manifest) -> Result<u64, ConvertError> {
        write_file(self.dir, files::MANIFEST, manifest.to_json()?.as_bytes())
    }
}

/// Lays out the weights of graphs that have the same names for the same weights, except those that stay in `files`.
pub(crate) fn plan_weights(graphs: &[&Graph], files: &[MappedFile]) -> Result<WeightFile, ConvertError> {
    let mut tensors: BTreeMap<&str, &Tensor> = BTreeMap::new();
    for graph in graphs {
        let weights = graph.consts().filter(|(id, ..)| graph.value(*id).is_weight);
        tensors.extend(weights.map(|(_, name, tensor)| (name, tensor)));
    }
    Ok(WeightFile::plan_beside(tensors.into_iter(), files)?)
}

/// Returns what there is to say of the weights.
pub(crate) fn write_weights(
    dir: &Path,
    weights: &WeightFile,
    progress: &mut dyn Progress,
) -> Result<Written, ConvertError> {
    progress.bytes("writing the weights", weights.size());
    let path = dir.join(files::WEIGHTS);
    let io = |source| ConvertError::Io { path: path.clone(), source };
    let mut file = File::create(&path).map_err(io)?;
    let written = weights.write(&mut file, &mut |bytes| progress.advance(bytes)).map_err(io)?;
    // Begun here, it overlaps with compiling; the commit waits for what is left.
    file.sync_data().map_err(io)?;
    Ok(written)
}

pub(crate) fn write_graph(
    dir: &Path,
    name: &str,
    opset: i64,
    graph: &Graph,
    weights: &WeightFile,
) -> Result<u64, ConvertError> {
    write_file(dir, name, &graph_bytes(opset, graph, weights)?)
}

pub(crate) fn graph_bytes(opset: i64, graph: &Graph, weights: &WeightFile) -> Result<Vec<u8>, ConvertError> {
    let external = ExternalWeights { location: files::WEIGHTS, file: weights };
    Ok(export(graph, &ExportOptions { opset, weights: Some(external) })?)
}

pub(crate) fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<u64, ConvertError> {
    let path = dir.join(name);
    std::fs::write(&path, bytes).map_err(|source| ConvertError::Io { path, source })?;
    Ok(bytes.len() as u64)
}
