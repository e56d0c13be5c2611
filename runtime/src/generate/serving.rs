//! A bundle being served: prompts in, tokens out, the state between kept where it is computed.

use std::path::{Path, PathBuf};

use crate::decode::bound::BoundDecoder;
use crate::decode::decoder::{Branching, Decoder, Scored};
use crate::decode::greedy::greedy;
use crate::decode::growing::GrowingDecoder;
use crate::decode::host::HostDecoder;
use crate::decode::identity::Model;
use crate::decode::state_file::{self, SavedState};
use crate::ort::program::Program;
use crate::ort::runtime::{GraphSource, OrtRuntime};
use crate::session::error::{RuntimeError, bad_call};
use crate::session::tensor::HostTensor;
use crate::session::{Factors, LoadOptions, Runtime};
use crate::tract::runtime::TractRuntime;
use dijiang_format::dtype::DType;
use dijiang_format::files::{DECODE, MODEL};
use dijiang_format::manifest::Manifest;
use dijiang_format::serving::{Device, Engine};

/// Prompt tokens fed at a time from bound memory where nothing is said.
pub const BOUND_SEGMENT: usize = 8192;
/// The same where a graph gives the last token's logits alone, but takes memory for a segment as it comes.
const GROWING_SEGMENT: usize = 4096;

/// A GPU computes longer ones faster.
fn growing_segment(device: Device) -> usize {
    if device == Device::Cpu { GROWING_SEGMENT } else { BOUND_SEGMENT }
}

/// How to serve a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingOptions {
    /// Where to compute.
    pub device: Device,
    /// Threads inside one operator; the runtime's own choice when absent.
    pub threads: Option<usize>,
    /// Whether a GPU replays recorded runs of the graphs for bound memory.
    pub cuda_graph: bool,
    /// A directory for ONNX Runtime's profiles of the graphs.
    pub profile: Option<PathBuf>,
    /// Prompt tokens fed at a time, at most; where absent 8,192 into bound memory, which takes fewer for shorter
    /// prompts, 4,096 where the graph gives the last logits alone, and 512 where all of them come to the host.
    pub segment: Option<usize>,
    /// The runtime that computes.
    pub engine: Engine,
    /// Whether graphs that give the logits of all tokens are run, as [`Serving::score`] is fastest with.
    pub all_logits: bool,
    /// Whether so few prompts are to come that a graph for them may not be worth its loading: into bound memory, short ones
    /// are fed by the graph of one token then, unless `segment` says otherwise.
    pub few_prompts: bool,
}

impl Default for ServingOptions {
    /// ONNX Runtime on the CPU.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            threads: None,
            cuda_graph: true,
            profile: None,
            segment: None,
            engine: Engine::Ort,
            all_logits: false,
            few_prompts: false,
        }
    }
}

/// A text that goes on in several ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Branches {
    /// The tokens that all of them begin with, one at least.
    pub shared: Vec<i64>,
    /// What follows in each, one token at least.
    pub rests: Vec<Vec<i64>>,
}

/// A loaded bundle with the state of some sequences.
#[derive(Debug)]
pub struct Serving {
    decoder: Box<dyn Decoder>,
    /// The model of a bundle; none of a decoder that is served alone.
    model: Option<Model>,
}

impl Serving {
    /// Loads a bundle by its own graphs, with an empty state for one sequence.
    pub fn open(bundle: &Path, options: &ServingOptions) -> Result<Self, RuntimeError> {
        let manifest = Manifest::read(bundle)?;
        let model = Some(Model::of(bundle, &manifest)?);
        let load = options.load(&manifest);
        if options.uses_bound_graphs(bundle) {
            let load = LoadOptions { cuda_graph: options.cuda_graph, ..load };
            let load = LoadOptions { profile: options.profile.clone(), ..load };
            let segment = options.segment.unwrap_or(BOUND_SEGMENT);
            let few_prompts = options.few_prompts && options.segment.is_none();
            let decoder = BoundDecoder::open(bundle, &load, segment, few_prompts)?;
            return Ok(Self { decoder: Box::new(decoder), model });
        }
        let runtime: Box<dyn Runtime> = match options.engine {
            Engine::Tract => Box::new(TractRuntime),
            _ => Box::new(OrtRuntime::new()?),
        };
        let file = bundle.join(manifest.serving_graph(options.engine, options.device));
        let session = runtime.load(&file, &load.profiled(options.profile.as_deref(), &file))?;
        let decoder = match options.segment {
            Some(segment) => HostDecoder::with_segment(session, segment)?,
            None => HostDecoder::new(session)?,
        };
        let is_grouped = manifest.target.groups_softmax() && file == bundle.join(MODEL);
        let decoder = if is_grouped { decoder.grouped() } else { decoder };
        Ok(Self { decoder: Box::new(decoder), model })
    }

    /// Loads a bundle by a graph that was made of one of its own and gives the likeliest next token and the last
    /// token's logits. `graph` is an ONNX file whose weights lie in the bundle.
    pub fn open_made(bundle: &Path, graph: &[u8], options: &ServingOptions) -> Result<Self, RuntimeError> {
        let manifest = Manifest::read(bundle)?;
        let model = Some(Model::of(bundle, &manifest)?);
        let file = bundle.join(manifest.serving_graph(options.engine, options.device));
        let load = options.load(&manifest).profiled(options.profile.as_deref(), &file);
        let source = GraphSource::Made { bytes: graph, from: &file };
        let program = Program::of(&OrtRuntime::new()?, source, &load)?;
        let decoder =
            GrowingDecoder::new(program, options.segment.unwrap_or(growing_segment(options.device)))?;
        Ok(Self { decoder: Box::new(decoder), model })
    }

    /// Serves a decoder that is there already.
    pub fn over(decoder: Box<dyn Decoder>) -> Self {
        Self { decoder, model: None }
    }

    /// Forgets everything, and serves this many sequences from here on.
    pub fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        self.decoder.start(batch)
    }

    /// Makes room for this many tokens in all, where the state grows.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), RuntimeError> {
        self.decoder.reserve(tokens)
    }

    /// Declares that this many tokens came before; see [`Decoder::skip_to`].
    pub fn skip_to(&mut self, tokens: usize) -> Result<(), RuntimeError> {
        self.decoder.skip_to(tokens)
    }

    /// Feeds one prompt per row, as long as each may be, after what was fed before. Returns the likeliest next tokens.
    pub fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        if prompts.iter().any(Vec::is_empty) {
            return Err(bad_call("prompt", "it has no tokens, expected at least one"));
        }
        let next = self.decoder.prefill(prompts)?;
        self.checked(next)
    }

    /// Feeds one token per row. Returns the likeliest next ones.
    pub fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        let next = self.decoder.decode(tokens)?;
        self.checked(next)
    }

    /// Goes through rows and tells what each token was; see [`Decoder::score`].
    pub fn score(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Vec<Scored>>, RuntimeError> {
        if rows.iter().any(Vec::is_empty) {
            return Err(bad_call("rows", "one has no tokens, expected at least one"));
        }
        self.decoder.score(rows)
    }

    /// How texts that begin alike are best fed.
    pub fn branching(&self) -> Branching {
        self.decoder.branching()
    }

    /// Forgets everything, and tells what the tokens of every way to go on were, of each text. What a text's ways share
    /// is fed once. The state afterwards is of no use.
    pub fn score_branches(&mut self, texts: &[Branches]) -> Result<Vec<Vec<Vec<Scored>>>, RuntimeError> {
        match self.branching() {
            Branching::Together => self.score_together(texts),
            Branching::Alone => texts.iter().map(|text| self.score_alone(text)).collect(),
            Branching::Never => self.score_apart(texts),
        }
    }

    /// The same with every text fed whole for each of its ways.
    pub fn score_apart(&mut self, texts: &[Branches]) -> Result<Vec<Vec<Vec<Scored>>>, RuntimeError> {
        texts.iter().map(|text| self.score_anew(text)).collect()
    }

    fn score_together(&mut self, texts: &[Branches]) -> Result<Vec<Vec<Vec<Scored>>>, RuntimeError> {
        let shared: Vec<Vec<i64>> = texts.iter().map(|text| text.shared.clone()).collect();
        self.start(texts.len())?;
        self.prefill(&shared)?;
        let (state, logits) = (self.decoder.state()?, self.decoder.logits()?);
        let rows: Vec<usize> =
            texts.iter().enumerate().flat_map(|(row, text)| text.rests.iter().map(move |_| row)).collect();
        self.decoder.set_state(state.rows(&rows)?, Some(logits.rows(&rows)?))?;
        let rests: Vec<Vec<i64>> = texts.iter().flat_map(|text| text.rests.clone()).collect();
        let mut scores = self.score(&rests)?.into_iter();
        Ok(texts.iter().map(|text| scores.by_ref().take(text.rests.len()).collect()).collect())
    }

    fn score_alone(&mut self, text: &Branches) -> Result<Vec<Vec<Scored>>, RuntimeError> {
        self.start(1)?;
        self.prefill(std::slice::from_ref(&text.shared))?;
        let (state, logits) = (self.decoder.state()?, self.decoder.logits()?);
        let mut scores = Vec::new();
        for rest in &text.rests {
            self.decoder.set_state(state.clone(), Some(logits.clone()))?;
            scores.extend(self.score(std::slice::from_ref(rest))?);
        }
        Ok(scores)
    }

    fn score_anew(&mut self, text: &Branches) -> Result<Vec<Vec<Scored>>, RuntimeError> {
        let whole = |rest: &Vec<i64>| {
            self.start(1)?;
            let mut scores = self.score(&[[text.shared.as_slice(), rest].concat()])?.concat();
            Ok(scores.split_off(scores.len() - rest.len()))
        };
        text.rests.iter().map(whole).collect()
    }

    /// The logits after each row's last token, f32 `[batch, vocabulary]`.
    pub fn logits(&self) -> Result<HostTensor, RuntimeError> {
        self.decoder.logits()
    }

    /// Graphs give no token where a logit is NaN; the logits then tell which.
    fn checked(&self, next: Vec<i64>) -> Result<Vec<i64>, RuntimeError> {
        if next.iter().any(|token| *token < 0) {
            let logits = self.decoder.logits()?;
            let width = logits.shape()[1].max(1);
            logits.to_f32()?.chunks(width).try_for_each(|row| greedy(row).map(|_| ()))?;
        }
        Ok(next)
    }

    /// Writes what was fed so far, as the state that it left, to a file from which [`Serving::load_state`]
    /// goes on with the same numbers.
    pub fn save_state(&self, path: &Path) -> Result<(), RuntimeError> {
        let writer = self.model.as_ref().map(Model::writer).transpose()?;
        let (state, logits) = (self.decoder.state()?, self.decoder.logits().ok());
        state_file::write(path, &state, logits.as_ref(), writer.as_ref())
    }

    /// Goes on from a file, which this model must have written. Its rows become the sequences that are served. An error
    /// leaves the state as it was. Files of earlier versions do not say what wrote them: they are taken for this
    /// model's, with a warning.
    pub fn load_state(&mut self, path: &Path) -> Result<(), RuntimeError> {
        let SavedState { state, logits, writer } = state_file::read(path)?;
        if let Some(model) = &self.model {
            model.check(path, writer)?;
        }
        self.decoder
            .set_state(state, logits)
            .map_err(|error| RuntimeError::State { path: path.to_path_buf(), reason: error.to_string() })
    }

    /// Bytes of state held now.
    pub fn state_bytes(&self) -> usize {
        self.decoder.state_bytes()
    }

    /// Tokens of the longest row so far, padding included.
    pub fn seen(&self) -> usize {
        self.decoder.columns()
    }

    /// Sequences served side by side.
    pub fn batch(&self) -> usize {
        self.decoder.batch()
    }
}

impl ServingOptions {
    /// Whether a bundle is served by its graphs for bound memory: where they are asked for, and on a GPU.
    pub fn uses_bound_graphs(&self, bundle: &Path) -> bool {
        let on_gpu = self.device != Device::Cpu && bundle.join(DECODE).exists();
        self.engine == Engine::OrtBound || (self.engine == Engine::Ort && on_gpu && !self.all_logits)
    }

    fn load(&self, manifest: &Manifest) -> LoadOptions {
        LoadOptions {
            threads: self.threads,
            device: self.device,
            released_opsets_only: !manifest.target.needs_unreleased_opset(),
            factors: if manifest.dtype == DType::F32 { Factors::Whole } else { Factors::Tf32 },
            ..LoadOptions::default()
        }
    }
}
