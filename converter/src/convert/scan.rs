//! Which layers look far: what it costs the model as it came to see near tokens alone in one layer, on texts that come twice
//! and on given ones. Those that cost most are the wide ones of a recipe ([`dijiang_format::recipe::Wide`]), or those that
//! stay softmax.

use super::losses::{LossProgram, Rows, write_to};
use super::state_budget::{Convertible, StateBudget};
use super::{ConvertError, ConvertOptions, refusal, source};
use crate::bundle::room;
use crate::bundle::softmax_model::SoftmaxModel;
use crate::convert::estimate::{of_scan, parameters};
use crate::convert::source::Source;
use crate::report::progress::{Progress, Say};
use crate::train::data::{self, Texts, Windows};
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, State};
use dijiang_format::names::{KEPT, WINDOWS};
use dijiang_format::recipe::{Recipe, Wide};
use dijiang_format::words::listed;
use dijiang_passes::attention::kept_graph::write_kept;
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::rewrite::Options;
use dijiang_passes::attention::scan_graph::write_windows;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::numeric::random::Random;
use dijiang_passes::pipeline::PassError;
use dijiang_passes::precision::widen::widen;
use dijiang_passes::training::parameters::{ParameterLayout, Precision};
use dijiang_passes::training::specialize::Size;
use dijiang_passes::training::step::evaluation;
use dijiang_runtime::{Device, LoadOptions, OrtRuntime, RuntimeError};
use indicatif::DecimalBytes;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A directory that is gone afterwards, in that of the bundle.
const DIR: &str = "scan";

/// A window that every token of every text is in.
const WHOLE: f32 = (1 << 24) as f32;

/// The least context of texts that come twice.
const LEAST_CONTEXT: u64 = 256;

/// Defaults of a scan.
pub const ROWS: u64 = 2;

/// What a layer sees while it is scanned, where the recipe has no window.
const NEAR: u32 = 32;

/// How many layers stay softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Layers(usize),
    /// As few as leave a tenth of what it costs to keep none.
    Auto,
    /// As many as leave the state within so many bytes.
    Within(StateBudget),
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            number => match number.parse() {
                Ok(layers) if layers > 0 => Ok(Self::Layers(layers)),
                _ => Err("expected auto, or how many layers: 1 or more".to_owned()),
            },
        }
    }
}

/// The share of what keeping no layer costs that [`Keep::Auto`] leaves.
const LEFT: f64 = 0.1;

/// How to scan.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// `local` says what a layer sees that is not wide, and `wide` how many are.
    pub recipe: Recipe,
    /// How many stay softmax; none is wide then.
    pub keep: Option<Keep>,
    /// Whether what several layers cost together is measured too.
    pub frontier: bool,
    pub dtype: Option<DType>,
    /// Only these layers are converted; all where it is `None`.
    pub layers: Option<Vec<usize>>,
    /// Texts beside those that come twice.
    pub data: Vec<PathBuf>,
    /// Tokens per row.
    pub context: Option<u64>,
    /// Rows of each kind.
    pub rows: u64,
    pub device: Device,
    pub threads: Option<usize>,
    pub seed: u64,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Scanned {
    /// Whether it is a bundle that was scanned: what is told of a layer is then what all lose less where that one is softmax
    /// and the others are as they are served, and else what all lose more where that one alone sees near tokens alone.
    pub reverse: bool,
    pub context: u64,
    /// Tokens that a layer sees while it is scanned; of a bundle the most that a window in it sees.
    pub window: u32,
    /// What the model as it came, or the softmax model in the bundle, loses on a token of texts that come twice, where it
    /// came before, in nats.
    pub copying: f64,
    /// The same of a token of the given texts, where some were given.
    pub text: Option<f64>,
    /// The layers that may be converted, in their order.
    pub layers: Vec<ScannedLayer>,
    /// Those that the recipe makes wide.
    pub wide: Vec<usize>,
    /// Those that stay softmax.
    pub kept: Vec<usize>,
    /// What it costs to let all layers but so many see near tokens alone, or be as the bundle serves them, where that was
    /// measured.
    pub frontier: Vec<Kept>,
}

/// What the model loses where all layers but those that cost most see near tokens alone.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Kept {
    /// How many layers see everything.
    pub layers: usize,
    /// Nats a token more than where all do, on texts that come twice.
    pub copying: f64,
    /// The same on the given texts.
    pub text: Option<f64>,
}

/// What a layer costs that sees near tokens alone.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct ScannedLayer {
    pub layer: usize,
    /// Nats a token more on texts that come twice.
    pub copying: f64,
    /// The same on the given texts.
    pub text: Option<f64>,
}

/// What losses on the two kinds of texts come to.
fn cost(copying: f64, text: Option<f64>) -> f64 {
    copying + text.unwrap_or(0.0)
}

/// Whether a conversion of a model with so many layers begins with a scan.
pub(super) fn is_needed(options: &ConvertOptions, layers: u64) -> bool {
    let chooses = |wide: &Wide| wide.layers.is_none() && wide.count(layers as usize) > 0;
    options.keep.is_some() || options.recipe.wide.as_ref().is_some_and(chooses)
}

/// What is said where less memory is free than a scan of so many parameters takes.
fn shortage(parameters: u64, free: Option<u64>) -> Option<String> {
    let needed = of_scan(parameters);
    let free = free.filter(|free| *free < needed)?;
    Some(format!(
        "the scan takes about {} of memory, and {} are free (hint: the recipe `gated` is converted without a scan)",
        DecimalBytes(needed),
        DecimalBytes(free)
    ))
}

/// The recipe of a conversion with the layers named that are not as the others.
pub(super) fn measured_recipe(
    opened: &mut Source,
    path: &Path,
    (scratch, options): (&Path, &ConvertOptions),
    progress: &mut dyn Progress,
) -> Result<Recipe, ConvertError> {
    match options.keep {
        None => wide_recipe(opened, path, (scratch, options), progress),
        Some(keep) => {
            let dir = scratch.join(DIR);
            let how = ScanOptions { frontier: keep == Keep::Auto, ..ScanOptions::of(options) };
            let scanned = scan_in(&dir, opened, path, (&how, progress));
            let scanned = scanned.map_err(|error| error.placed(&dir, scratch))?;
            if !scanned.copying.is_finite() {
                return Err(ConvertError::NothingToKeep { path: path.to_owned() });
            }
            opened.notes.push(told_kept(&scanned));
            Ok(kept(options.recipe.clone(), scanned.kept))
        }
    }
}

/// A recipe with layers that stay softmax beside those that do already, and none that is wide.
pub fn kept(recipe: Recipe, layers: Vec<usize>) -> Recipe {
    let all: BTreeSet<usize> = recipe.softmax_layers.iter().copied().chain(layers).collect();
    Recipe { wide: None, softmax_layers: all.into_iter().collect(), ..recipe }
}

/// The recipe of a bundle with layers softmax that are not, beside those that are in it for another reason. What is wide
/// beside them stays so, as it was measured.
pub fn kept_of_bundle(manifest: &Manifest, layers: &[usize]) -> Recipe {
    let own = manifest.sites.iter().filter(|site| !site.lowered).map(|site| site.layer);
    let named = manifest.recipe.softmax_layers.iter().chain(layers).copied();
    let all: BTreeSet<usize> = own.chain(named).collect();
    let wide = manifest.recipe.wide.clone().map(|wide| Wide {
        layers: wide.layers.map(|wide| wide.into_iter().filter(|layer| !all.contains(layer)).collect()),
        ..wide
    });
    Recipe { wide, softmax_layers: all.into_iter().collect(), ..manifest.recipe.clone() }
}

fn told_kept(scanned: &Scanned) -> String {
    let (kept, window) = (listed(&scanned.kept), scanned.window);
    match scanned.kept.len() {
        1 => format!(
            "layer {kept} stays softmax: a scan found that it loses most where it sees {window} tokens back"
        ),
        _ => format!(
            "layers {kept} stay softmax: a scan found that they lose most where they see {window} tokens back"
        ),
    }
}

/// The recipe with its wide layers named: measured, where it does not name them itself. Where that cannot be done there are
/// none, and the source's warnings say so.
fn wide_recipe(
    opened: &mut Source,
    path: &Path,
    (scratch, options): (&Path, &ConvertOptions),
    progress: &mut dyn Progress,
) -> Result<Recipe, ConvertError> {
    let mut recipe = options.recipe.clone();
    let Some(wide) = recipe.wide.as_mut().filter(|wide| wide.layers.is_none()) else { return Ok(recipe) };
    let layers = match wide.count(opened.meta.layers as usize) {
        0 => Vec::new(),
        _ => {
            let dir = scratch.join(DIR);
            match scan_in(&dir, opened, path, (&ScanOptions::of(options), progress)) {
                Ok(scanned) if scanned.copying.is_finite() => {
                    // Where every layer has a window of its own, there is none to choose.
                    opened.notes.extend((!scanned.wide.is_empty()).then(|| told(&scanned, wide)));
                    scanned.wide
                }
                Ok(_) => {
                    opened.warnings.push(unmeasured(path, "the loss of the model as it came is no number"));
                    Vec::new()
                }
                Err(error) if cannot_run(&error) => {
                    opened.warnings.push(unmeasured(path, &error.to_string()));
                    Vec::new()
                }
                Err(error) => return Err(error.placed(&dir, scratch)),
            }
        }
    };
    wide.layers = Some(layers);
    Ok(recipe)
}

/// Scans in a new directory, which is gone afterwards.
fn scan_in(
    dir: &Path,
    opened: &Source,
    path: &Path,
    (options, progress): (&ScanOptions, &mut dyn Progress),
) -> Result<Scanned, ConvertError> {
    let io = |source| ConvertError::Io { path: dir.to_owned(), source };
    std::fs::create_dir(dir).map_err(io)?;
    let scanned = scan_opened(opened, (path, dir), options, progress);
    std::fs::remove_dir_all(dir).map_err(io)?;
    scanned
}

/// Whether the model cannot be measured here, which a conversion does without.
fn cannot_run(error: &ConvertError) -> bool {
    let is_missing = |error: &RuntimeError| {
        matches!(error, RuntimeError::LibraryMissing { .. } | RuntimeError::LibraryTooOld { .. })
    };
    match error {
        ConvertError::Scan(_) => true,
        ConvertError::Runtime(error) => is_missing(error),
        _ => false,
    }
}

fn unmeasured(path: &Path, why: &str) -> String {
    format!(
        "{}: no layer has a longer window, as which of them look far was not measured: {why} (hint: name them in a recipe, `wide: {{window: 256, layers: […]}}`)",
        path.display()
    )
}

fn told(scanned: &Scanned, wide: &Wide) -> String {
    let (layers, far, near) = (listed(&scanned.wide), wide.window, scanned.window);
    match scanned.wide.len() {
        1 => format!(
            "layer {layers} sees {far} tokens back, and the others {near}: a scan found that it looks far"
        ),
        _ => format!(
            "layers {layers} see {far} tokens back, and the others {near}: a scan found that they look far"
        ),
    }
}

impl ScanOptions {
    /// Of a conversion.
    fn of(options: &ConvertOptions) -> Self {
        Self {
            recipe: options.recipe.clone(),
            keep: options.keep,
            frontier: false,
            dtype: options.dtype,
            layers: options.layers.clone(),
            data: Vec::new(),
            context: None,
            rows: ROWS,
            device: Device::Cpu,
            threads: options.verify.as_ref().and_then(|verify| verify.threads),
            seed: options.seed,
        }
    }
}

/// Scans the model at `path`, or the bundle. Its weights are written to a directory in `scratch` that is gone afterwards.
pub fn scan(
    path: &Path,
    scratch: &Path,
    options: &ScanOptions,
    progress: &mut dyn Progress,
) -> Result<Scanned, ConvertError> {
    progress.stage("reading the source");
    let dir = tempfile::Builder::new().prefix(".dijiang-scan-").tempdir_in(scratch);
    let dir = dir.map_err(|source| ConvertError::Io { path: scratch.to_owned(), source })?;
    if is_bundle(path) {
        return scan_bundle((path, dir.path()), options, progress);
    }
    refusal::check_source(path)?;
    let opened = source::open(path, options.dtype)?;
    if opened.own_attention.is_some() {
        return Err(ConvertError::NothingToScan { path: path.to_owned() });
    }
    scan_opened(&opened, (path, dir.path()), options, progress)
}

/// Whether `dijiang convert` wrote it.
pub fn is_bundle(path: &Path) -> bool {
    path.join(files::MANIFEST).is_file()
}

/// The layers of a bundle, each softmax or as it is served.
fn scan_bundle(
    (path, dir): (&Path, &Path),
    options: &ScanOptions,
    progress: &mut dyn Progress,
) -> Result<Scanned, ConvertError> {
    let keep = options.keep.ok_or_else(|| ConvertError::HowManyToKeep { path: path.to_owned() })?;
    let softmax = SoftmaxModel::open(path, true)?;
    let manifest = softmax.manifest();
    let model = &manifest.model;
    let about = About {
        tokenizer: path.join(files::TOKENIZER),
        eos: model.eos.first().copied(),
        vocab: model.vocab,
        positions: model.positions,
    };
    // Copies are further away than the widest window reaches.
    let wide = manifest.recipe.wide.as_ref().map_or(0, |wide| wide.window);
    let window = near_window(&manifest.recipe).max(wide);
    let how = softmax.options(context(&about, options, window));
    let mut graph = softmax.graph.clone();
    let (layers, count) = write_kept(&mut graph, &how)
        .map_err(|error| refusal::of_pipeline(path, PassError::from(error).into()))?;
    softmax.check_parameters(&graph)?;
    canonicalize(&mut graph).map_err(source::SourceError::from)?;
    let kept = Scan { graph, layers, count, kind: Kind::Kept, window };
    let kept_in = |state: &State| {
        let own = manifest.state.iter().find(|own| own.name == state.name);
        own.map_or(manifest.dtype, |own| own.dtype)
    };
    let convertible = Convertible {
        graph: &softmax.graph,
        recipe: &|layers| kept_of_bundle(manifest, &layers),
        layers: how.layers,
        added: how.added,
        kept_in: &kept_in,
    };
    kept.measure((&about, dir), &convertible, &ScanOptions { keep: Some(keep), ..options.clone() }, progress)
}

/// The same of a model that is open. Its weights are written to `dir`.
fn scan_opened(
    opened: &Source,
    (path, dir): (&Path, &Path),
    options: &ScanOptions,
    progress: &mut dyn Progress,
) -> Result<Scanned, ConvertError> {
    if let Some(short) = shortage(parameters(&opened.graph), room::free_memory()) {
        progress.say(Say::Warning, &short);
    }
    let rewrite = |error| refusal::of_pipeline(path, PassError::from(error).into());
    let mut graph = opened.graph.clone();
    canonicalize(&mut graph).map_err(source::SourceError::from)?;
    if opened.dtype == DType::BF16 && options.device == Device::Cpu {
        // No CPU computes in it.
        graph = widen(&graph)
            .map_err(PassError::from)
            .map_err(|error| refusal::of_pipeline(path, error.into()))?;
        canonicalize(&mut graph).map_err(source::SourceError::from)?;
    }
    let layers = options.layers.as_deref();
    let how = Options { recipe: &options.recipe, form: Form::Parallel, seed: 0, layers, added: None };
    let (scanned, count) = write_windows(&mut graph, &how).map_err(rewrite)?;
    let meta = &opened.meta;
    let io = |source| ConvertError::Io { path: dir.to_owned(), source };
    let about = About {
        tokenizer: opened.texts.path(files::TOKENIZER, dir).map_err(io)?,
        eos: meta.eos.first().copied(),
        vocab: meta.vocab,
        positions: meta.learned_positions,
    };
    let near = Scan { graph, layers: scanned, count, kind: Kind::Near, window: near_window(&options.recipe) };
    let convertible = Convertible {
        graph: &opened.graph,
        recipe: &|layers| kept(options.recipe.clone(), layers),
        layers,
        added: None,
        kept_in: &|state| state.dtype,
    };
    near.measure((&about, dir), &convertible, options, progress)
}

/// What a layer sees while it is scanned.
fn near_window(recipe: &Recipe) -> u32 {
    recipe.local.map_or(NEAR, |local| local.window)
}

/// What a model says of texts.
struct About {
    tokenizer: PathBuf,
    eos: Option<u64>,
    vocab: u64,
    /// Positions that it has learned.
    positions: Option<u64>,
}

/// What an input says of each layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// How many tokens it sees.
    Near,
    /// Whether it is softmax.
    Kept,
}

impl Kind {
    fn input(self) -> &'static str {
        match self {
            Self::Near => WINDOWS,
            Self::Kept => KEPT,
        }
    }
}

/// A graph that is scanned.
struct Scan {
    graph: Graph,
    /// The layers that may be converted, or are.
    layers: Vec<usize>,
    count: usize,
    kind: Kind,
    window: u32,
}

impl Scan {
    fn measure(
        self,
        (about, dir): (&About, &Path),
        convertible: &Convertible<'_>,
        options: &ScanOptions,
        progress: &mut dyn Progress,
    ) -> Result<Scanned, ConvertError> {
        let Self { graph, layers, count, kind, window } = self;
        // Before the weights are written, for which there is no use without it.
        let runtime = OrtRuntime::new()?;
        if let Some(Keep::Within(budget)) = options.keep {
            convertible.check(budget, &layers)?;
        }
        let size = Size { batch: options.rows, sequence: context(about, options, window) };
        let nothing = ParameterLayout::default();
        let graph = evaluation(&graph, &nothing, size, Precision::F32)?;
        let load = LoadOptions { threads: options.threads, device: options.device, ..LoadOptions::default() };
        let program = LossProgram::load(&runtime, &write_to(dir, &graph, progress)?, &load, kind.input())?;
        let mut scanner = Scanner { program, layers: count, kind, window };
        let texts = texts(about, options, size)?;
        progress.stage(&format!("scanning {} layers", layers.len()));
        let whole = scanner.losses(&texts, &[])?;
        let served = match kind {
            Kind::Near => whole,
            Kind::Kept => scanner.losses(&texts, &layers)?,
        };
        let mut scanned = Vec::new();
        for layer in &layers {
            let others = layers.iter().copied().filter(|other| other != layer);
            let (copying, text) = match kind {
                Kind::Near => more(scanner.losses(&texts, &[*layer])?, whole),
                Kind::Kept => more(served, scanner.losses(&texts, &others.collect::<Vec<_>>())?),
            };
            scanned.push(ScannedLayer { layer: *layer, copying, text });
        }
        let frontier = match options.frontier {
            true => frontier(&mut scanner, &texts, &scanned, (whole, progress))?,
            false => Vec::new(),
        };
        let kept = match options.keep {
            None => 0,
            Some(Keep::Layers(layers)) => layers,
            Some(Keep::Auto) => enough(&frontier),
            Some(Keep::Within(budget)) => {
                convertible.most_within(budget, scanned.len(), |layers| dearest(&scanned, layers))?
            }
        };
        let wide = options.recipe.wide.as_ref().filter(|_| options.keep.is_none());
        let most = wide.map_or(0, |wide| wide.count(count));
        Ok(Scanned {
            reverse: kind == Kind::Kept,
            context: size.sequence,
            window,
            copying: whole.0,
            text: whole.1,
            wide: dearest(&scanned, most),
            kept: dearest(&scanned, kept),
            layers: scanned,
            frontier,
        })
    }
}

/// Losses on the two kinds of texts.
type Losses = (f64, Option<f64>);

fn more(near: Losses, whole: Losses) -> Losses {
    (near.0 - whole.0, near.1.zip(whole.1).map(|(near, whole)| near - whole))
}

/// What is lost together by all layers but the dearest 0, 1, 2, 3, 4, 6, 8, 12, … of them.
fn frontier(
    scanner: &mut Scanner,
    texts: &Scannable,
    scanned: &[ScannedLayer],
    (whole, progress): (Losses, &mut dyn Progress),
) -> Result<Vec<Kept>, RuntimeError> {
    progress.stage("measuring what several layers cost together");
    let mut found = Vec::new();
    for layers in counts(scanned.len()) {
        let far = dearest(scanned, layers);
        let near: Vec<usize> = scanned.iter().map(|s| s.layer).filter(|l| !far.contains(l)).collect();
        let (copying, text) = more(scanner.losses(texts, &near)?, whole);
        found.push(Kept { layers, copying, text });
    }
    Ok(found)
}

/// 0 to 4, and from there on every half of a doubling, below `layers`.
fn counts(layers: usize) -> Vec<usize> {
    let powers = (1..).map(|n| 1usize << n).take_while(|n| *n < layers);
    let all: BTreeSet<usize> = [0, 1].into_iter().chain(powers.flat_map(|n| [n, n + n / 2])).collect();
    all.into_iter().filter(|n| *n < layers).collect()
}

/// The fewest layers that leave a tenth of what keeping none costs; all but one where none do.
fn enough(frontier: &[Kept]) -> usize {
    let cost = |kept: &Kept| cost(kept.copying, kept.text);
    let none = frontier.first().map_or(0.0, cost);
    let enough = frontier.iter().find(|kept| cost(kept) <= LEFT * none);
    enough.or(frontier.last()).map_or(0, |kept| kept.layers)
}

/// The layers that cost most, in their order; of equal ones the first.
fn dearest(scanned: &[ScannedLayer], most: usize) -> Vec<usize> {
    let mut by_cost: Vec<&ScannedLayer> = scanned.iter().collect();
    let cost = |scanned: &ScannedLayer| cost(scanned.copying, scanned.text);
    by_cost.sort_by(|a, b| cost(b).total_cmp(&cost(a)).then(a.layer.cmp(&b.layer)));
    let mut layers: Vec<usize> = by_cost.iter().take(most).map(|scanned| scanned.layer).collect();
    layers.sort_unstable();
    layers
}

/// Half a row is further away than a window reaches; the halves are alike.
fn context(about: &About, options: &ScanOptions, window: u32) -> u64 {
    let context = options.context.unwrap_or(LEAST_CONTEXT.max(4 * u64::from(window)));
    let context = about.positions.map_or(context, |positions| positions.min(context));
    context - context % 2
}

/// What is scanned on.
struct Scannable {
    copies: Rows,
    given: Option<Rows>,
}

fn texts(about: &About, options: &ScanOptions, size: Size) -> Result<Scannable, ConvertError> {
    let half = size.sequence as usize / 2;
    // What the second half begins with was not foretold.
    let copies = Rows::new(&copies(about.vocab, options, half), half + 1)?;
    if options.data.is_empty() {
        return Ok(Scannable { copies, given: None });
    }
    let texts = Texts { tokenizer: &about.tokenizer, end: about.eos, vocab: about.vocab };
    let most = (size.batch * size.sequence) as usize;
    let stream = data::read(&options.data, &texts, Some(most))?;
    data::check_length(stream.len(), most)?;
    let rows = Windows::new(stream, size.sequence as usize, options.seed)?.in_order(size.batch as usize);
    Ok(Scannable { copies, given: Some(Rows::new(&rows, 0)?) })
}

/// Tokens that no text has, and again, so that only a look at where they came before foretells them.
fn copies(vocab: u64, options: &ScanOptions, half: usize) -> Vec<Vec<i64>> {
    let vocab = vocab.max(1);
    let row = |row: u64| {
        let mut random = Random::named(options.seed, &format!("scan.{row}"));
        let once: Vec<i64> = (0..half).map(|_| (random.next_u64() % vocab) as i64).collect();
        [once.clone(), once].concat()
    };
    (0..options.rows).map(row).collect()
}

struct Scanner {
    program: LossProgram,
    layers: usize,
    kind: Kind,
    window: u32,
}

impl Scanner {
    /// The loss of a token of each kind, with layers that see near tokens alone, or are as they are served.
    fn losses(&mut self, texts: &Scannable, near: &[usize]) -> Result<Losses, RuntimeError> {
        let (all, few) = match self.kind {
            Kind::Near => (WHOLE, self.window as f32),
            Kind::Kept => (1.0, 0.0),
        };
        let mut numbers = vec![all; self.layers];
        near.iter().for_each(|layer| numbers[*layer] = few);
        self.program.give_numbers(self.kind.input(), &numbers)?;
        let copying = self.program.loss(&texts.copies)?;
        Ok((copying, texts.given.as_ref().map(|rows| self.program.loss(rows)).transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(layer: usize, copying: f64, text: f64) -> ScannedLayer {
        ScannedLayer { layer, copying, text: Some(text) }
    }

    #[test]
    fn counts_of_kept_layers_are_close_where_they_are_few() {
        assert_eq!(counts(30), [0, 1, 2, 3, 4, 6, 8, 12, 16, 24]);
        assert_eq!([counts(0), counts(1), counts(3)], [vec![], vec![0], vec![0, 1, 2]]);
    }

    #[test]
    fn enough_is_what_leaves_a_tenth() {
        let kept = |costs: &[f64]| -> Vec<Kept> {
            let all = costs.iter().enumerate();
            all.map(|(layers, copying)| Kept { layers, copying: *copying, text: None }).collect()
        };
        assert_eq!(enough(&kept(&[10.0, 2.0, 0.9, 0.1])), 2);
        assert_eq!(enough(&kept(&[10.0, 9.0])), 1, "none is enough");
        assert_eq!(enough(&[]), 0);
    }

    #[test]
    fn the_dearest_layers_are_wide_in_their_order() {
        let scanned = [layer(0, 0.1, 0.0), layer(1, 0.0, 0.3), layer(2, 0.2, 0.1), layer(3, 0.1, 0.0)];
        assert_eq!(dearest(&scanned, 2), [1, 2]);
        assert_eq!(dearest(&scanned, 3), [0, 1, 2], "of equal ones the first");
        assert_eq!(dearest(&scanned, 0), [0; 0]);
    }
}
