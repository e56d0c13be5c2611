//! A bundle being served: prompts in, tokens out, the state between kept where it is computed.

use std::path::{Path, PathBuf};

use crate::decode::bound::BoundDecoder;
use crate::decode::decoder::Decoder;
use crate::decode::identity::Model;
use crate::decode::state_file::{self, SavedState};
use crate::ort::runtime::OrtRuntime;
use crate::serve::sample::greedy;
use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;
use crate::session::{LoadOptions, Runtime};
use crate::tract::runtime::TractRuntime;
use dijiang_format::files::DECODE;
use dijiang_format::manifest::Manifest;
use dijiang_format::serving::{Device, Engine};

/// Prompt tokens fed at a time from bound memory where nothing is said.
pub const BOUND_SEGMENT: usize = 8192;
/// And otherwise.
const SEGMENT: usize = 512;

/// How to serve a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingOptions {
    /// Where to compute.
    pub device: Device,
    /// Threads inside one operator; the runtime's own choice when absent.
    pub threads: Option<usize>,
    /// Tokens that a growing cache holds at most; a state of fixed size needs none.
    pub max_tokens: Option<usize>,
    /// Whether a GPU replays recorded runs of the graphs for bound memory.
    pub cuda_graph: bool,
    /// A directory for ONNX Runtime's profiles of the graphs.
    pub profile: Option<PathBuf>,
    /// Prompt tokens fed at a time, at most; where absent 8,192 into bound memory, which takes fewer for shorter
    /// prompts and brings no logits to the host, and 512 elsewhere.
    pub segment: Option<usize>,
    /// The runtime that computes.
    pub engine: Engine,
}

impl Default for ServingOptions {
    /// ONNX Runtime on the CPU.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            threads: None,
            max_tokens: None,
            cuda_graph: true,
            profile: None,
            segment: None,
            engine: Engine::Ort,
        }
    }
}

/// A loaded bundle with the state of some sequences.
#[derive(Debug)]
pub struct Serving {
    served: Served,
    /// The model of a bundle; none of a graph that is driven alone.
    model: Option<Model>,
}

/// The two ways to serve.
#[derive(Debug)]
enum Served {
    Bound(Box<BoundDecoder>),
    Driven(Driven),
}

/// One graph for prompts and tokens, whose logits come to the host.
#[derive(Debug)]
struct Driven {
    decoder: Decoder,
    segment: usize,
    /// Tokens that the state may come to hold.
    max_tokens: Option<usize>,
    /// After each row's last token, f32 `[batch, vocabulary]`; none before the first.
    logits: Option<HostTensor>,
}

impl Serving {
    /// Loads a bundle, with an empty state for one sequence.
    pub fn open(bundle: &Path, options: &ServingOptions) -> Result<Self, RuntimeError> {
        let manifest = Manifest::read(bundle)?;
        let model = Some(Model::of(bundle, &manifest)?);
        let load = LoadOptions {
            threads: options.threads,
            device: options.device,
            released_opsets_only: !manifest.target.needs_unreleased_opset(),
            ..LoadOptions::default()
        };
        let on_gpu = options.device != Device::Cpu && bundle.join(DECODE).exists();
        if options.engine == Engine::OrtBound || (options.engine == Engine::Ort && on_gpu) {
            let load =
                LoadOptions { cuda_graph: options.cuda_graph, profile: options.profile.clone(), ..load };
            return Ok(Self {
                served: Served::Bound(Box::new(BoundDecoder::open(
                    bundle,
                    &load,
                    options.segment.unwrap_or(BOUND_SEGMENT),
                )?)),
                model,
            });
        }
        let runtime: Box<dyn Runtime> = match options.engine {
            Engine::Tract => Box::new(TractRuntime),
            _ => Box::new(OrtRuntime::new()?),
        };
        let file = bundle.join(manifest.serving_graph(options.engine, options.device));
        let load = load.profiled(options.profile.as_deref(), &file);
        let mut serving =
            Self::over(Decoder::new(runtime.load(&file, &load)?)?, options.segment.unwrap_or(SEGMENT));
        serving.model = model;
        if let Served::Driven(driven) = &mut serving.served {
            driven.max_tokens = options.max_tokens;
        }
        Ok(serving)
    }

    /// Serves a graph that is loaded already, prompts so many tokens at a time.
    pub fn over(decoder: Decoder, segment: usize) -> Self {
        let driven = Driven { decoder, segment, max_tokens: None, logits: None };
        Self { served: Served::Driven(driven), model: None }
    }

    /// Forgets everything, and serves this many sequences from here on.
    pub fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        match &mut self.served {
            Served::Bound(bound) => bound.start(batch),
            Served::Driven(driven) => driven.start(batch),
        }
    }

    /// Feeds one prompt per row, as long as each may be, behind what was fed before; gives the likeliest next
    /// tokens.
    pub fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        if prompts.iter().any(Vec::is_empty) {
            return Err(bad("prompt", "it has no tokens, expected at least one"));
        }
        match &mut self.served {
            Served::Bound(bound) => bound.prefill(prompts).and_then(|next| checked(bound, next)),
            Served::Driven(driven) => driven.prefill(prompts),
        }
    }

    /// Feeds one token per row; gives the likeliest next ones.
    pub fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        match &mut self.served {
            Served::Bound(bound) => bound.decode(tokens).and_then(|next| checked(bound, next)),
            Served::Driven(driven) => driven.decode(tokens),
        }
    }

    /// The logits after each row's last token, f32 `[batch, vocabulary]`.
    pub fn logits(&mut self) -> Result<HostTensor, RuntimeError> {
        match &self.served {
            Served::Bound(bound) => bound.logits(),
            Served::Driven(driven) => {
                driven.logits.clone().ok_or_else(|| bad("logits", "no token was fed yet"))
            }
        }
    }

    /// Writes what was fed so far, as the state that it left, to a file from which [`Serving::load_state`]
    /// goes on with the same numbers.
    pub fn save_state(&self, path: &Path) -> Result<(), RuntimeError> {
        let writer = self.model.as_ref().map(Model::writer).transpose()?;
        let (state, logits) = match &self.served {
            Served::Bound(bound) => (bound.state()?, bound.logits().ok()),
            Served::Driven(driven) => (driven.decoder.state()?, driven.logits.clone()),
        };
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
        let loaded = match &mut self.served {
            Served::Bound(bound) => bound.set_state(&state, logits),
            Served::Driven(driven) => driven
                .decoder
                .fitted(state)
                .and_then(|state| driven.decoder.set_state(state))
                .map(|()| driven.logits = logits),
        };
        loaded.map_err(|error| RuntimeError::State { path: path.to_path_buf(), reason: error.to_string() })
    }

    /// Bytes of state held now.
    pub fn state_bytes(&self) -> usize {
        match &self.served {
            Served::Bound(bound) => bound.state_bytes(),
            Served::Driven(driven) => driven.decoder.state_bytes(),
        }
    }

    /// Tokens of the longest row so far, padding included.
    pub fn seen(&self) -> usize {
        match &self.served {
            Served::Bound(bound) => bound.columns(),
            Served::Driven(driven) => driven.decoder.history().columns,
        }
    }

    /// Sequences served side by side.
    pub fn batch(&self) -> usize {
        match &self.served {
            Served::Bound(bound) => bound.batch(),
            Served::Driven(driven) => driven.decoder.batch(),
        }
    }
}

impl Driven {
    fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        self.logits = None;
        self.decoder.reset(batch)
    }

    fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError> {
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        self.check_room(width)?;
        let even = prompts.iter().all(|row| row.len() == width);
        let filled = |row: &Vec<i64>, with: i64| {
            let mut row = row.clone();
            row.resize(width, with);
            row
        };
        // Padding is behind, where operators that count the tokens of a row allow it.
        let ids: Vec<Vec<i64>> = prompts.iter().map(|row| filled(row, 0)).collect();
        let mask: Vec<Vec<i64>> = prompts.iter().map(|row| filled(&vec![1; row.len()], 0)).collect();
        let mask = (!even).then_some(mask.as_slice());
        let logits = self.decoder.prefill(&ids, mask, self.segment)?;
        self.keep(logits)
    }

    fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        self.check_room(1)?;
        let ids: Vec<Vec<i64>> = tokens.iter().map(|token| vec![*token]).collect();
        let logits = self.decoder.feed(&ids, None)?;
        let [rows, _, vocabulary] = *logits.shape() else {
            return Err(bad("logits", "they are no [batch, tokens, vocabulary]"));
        };
        let last = HostTensor::from_f32(&[rows, vocabulary], &logits.to_f32()?)?;
        self.keep(last)
    }

    fn keep(&mut self, logits: HostTensor) -> Result<Vec<i64>, RuntimeError> {
        let width = logits.shape()[1].max(1);
        let best = logits.to_f32()?.chunks(width).map(|row| greedy(row).map(|id| id as i64)).collect();
        self.logits = Some(logits);
        best
    }

    fn check_room(&self, tokens: usize) -> Result<(), RuntimeError> {
        let Some(most) = self.max_tokens.filter(|_| self.decoder.grows()) else { return Ok(()) };
        let needed = self.decoder.history().columns + tokens;
        if needed > most {
            let reason = format!("{needed} tokens do not fit the cache of {most} that was asked for");
            return Err(bad("max_tokens", reason));
        }
        Ok(())
    }
}

/// The graphs give no token where a logit is NaN; the logits then tell which.
fn checked(bound: &BoundDecoder, next: Vec<i64>) -> Result<Vec<i64>, RuntimeError> {
    if next.iter().any(|token| *token < 0) {
        let logits = bound.logits()?;
        let width = logits.shape()[1].max(1);
        logits.to_f32()?.chunks(width).try_for_each(|row| greedy(row).map(|_| ()))?;
    }
    Ok(next)
}

fn bad(place: &'static str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::BadCall { place, reason: reason.into() }
}
