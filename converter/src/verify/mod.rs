//! The proof of a bundle: every form of the model, in every runtime, against every other.
//!
//! Compared are the logits of all tokens, by the norm of the difference over the norm of the reference.
//! What is equal by construction must agree to rounding; the drift against softmax attention is reported
//! beside it and never passed off as equality. Every comparison is a row of a [`table`]; a file for each kind of them
//! makes its rows.

mod at_once;
mod bytes;
mod cases;
mod decoding;
mod device;
mod drift;
mod far;
mod features;
mod forms;
mod interpreter;
mod listed;
mod measure;
pub(crate) mod oracle;
mod plain;
mod prompts;
pub mod reference;
mod run;
pub mod table;
mod text;

use crate::checkpoint::digests::DigestError;
use crate::onnx::import::{self, ImportError};
use crate::report::progress::{Progress, Say};
use crate::serving::OpenError;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, RuntimeVersion, SourceKind};
use dijiang_format::serving::Device;
use dijiang_format::target::Target;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::tensor::ReadError;
use dijiang_runtime::{LoadOptions, OrtRuntime, Runtime, RuntimeError, TractRuntime};
pub(crate) use drift::{TEXT_CONVERTED, TEXT_SOFTMAX, quantization_drift};
use features::Pictures;
use plain::Plain;
use prompts::Prompts;
use run::Model;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;
use table::Comparison;
pub use table::{Check, Measure, Status, Verification};

/// Which runtimes take part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    Ort,
    Tract,
    /// Both; without an ONNX Runtime on the machine, tract alone, and a row says so.
    #[default]
    All,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "ort" => Ok(Self::Ort),
            "tract" => Ok(Self::Tract),
            "all" => Ok(Self::All),
            _ => Err(format!("no runtime is called `{s}` (expected one of ort, tract, all)")),
        }
    }
}

/// Verification could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Open(Box<OpenError>),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(
        "the proof feeds tokens, padding, positions and token types, and does not know what the input `{input}` holds (hint: --no-verify leaves the proof out)"
    )]
    UnknownInput { input: String },
    #[error("{file}: {reason}")]
    Model { file: String, reason: String },
}

impl From<OpenError> for VerifyError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}

/// What verification does beyond the defaults.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    pub runtimes: Choice,
    pub seed: u64,
    /// The source's own logits, see [`reference`].
    pub reference: Option<PathBuf>,
    /// Threads inside one operator; all cores where not given.
    pub threads: Option<usize>,
    /// Where what `generate` runs is run too. Everything else computes on the CPU.
    pub device: Option<Device>,
}

/// Verifies the bundle in a directory.
pub fn verify(
    bundle: &Path,
    options: &VerifyOptions,
    progress: &mut dyn Progress,
) -> Result<Verification, VerifyError> {
    let manifest = Manifest::read(bundle)?;
    let mut verifier = Verifier::new(bundle, &manifest, options, progress)?;
    match verifier.files()? {
        Some(missing) => verifier.skip("every comparison of numbers", format!("{missing} is missing")),
        None => verifier.numbers(options)?,
    }
    Ok(verifier.finish())
}

/// The prompts that a bundle is verified with.
pub(crate) fn prompts(manifest: &Manifest, seed: u64) -> Vec<Vec<i64>> {
    Prompts::new(manifest, seed).rows()
}

struct Verifier<'a> {
    bundle: &'a Path,
    manifest: &'a Manifest,
    dtype: DType,
    served: ServedGraph,
    /// Whether the bundle's graphs carry nothing from call to call, as encoders do.
    stateless: bool,
    runtimes: Vec<Box<dyn Runtime>>,
    prompts: Prompts,
    pictures: Pictures,
    threads: Option<usize>,
    device: Option<Device>,
    progress: &'a mut dyn Progress,
    found: Verification,
    /// When the last row was there.
    since: Instant,
}

/// What the serving graph was found to do.
#[derive(Debug, Clone, Copy, Default)]
struct ServedGraph {
    /// Whether products round their activations.
    rounds: bool,
    /// How far it may be from the forms then.
    bytes: f64,
    /// Whether it has ONNX Runtime's grouped attention in it.
    grouped: bool,
    /// Whether it counts the tokens of a row from its beginning, so that rows are padded at the right.
    counts: bool,
}

/// What [`OrtRuntime`] calls itself.
const ORT: &str = "onnxruntime";

/// How far equal things may differ in f32 arithmetic: what rounding at 2⁻²⁴ grows to over some dozen layers.
const EXACT: f64 = 1e-4;
/// How far half-precision arithmetic may be from that: rounding of activations at 2⁻¹¹.
const HALF: f64 = 2e-2;

impl<'a> Verifier<'a> {
    fn new(
        bundle: &'a Path,
        manifest: &'a Manifest,
        options: &VerifyOptions,
        progress: &'a mut dyn Progress,
    ) -> Result<Self, VerifyError> {
        let dtype = manifest.dtype;
        let mut verifier = Self {
            bundle,
            manifest,
            dtype,
            served: ServedGraph::default(),
            stateless: manifest.state.is_empty(),
            runtimes: Vec::new(),
            prompts: Prompts::new(manifest, options.seed),
            pictures: Pictures::default(),
            threads: options.threads,
            device: options.device,
            progress,
            found: Verification::default(),
            since: Instant::now(),
        };
        verifier.open_runtimes(options.runtimes)?;
        Ok(verifier)
    }

    /// ONNX Runtime first, which the others are compared with.
    fn open_runtimes(&mut self, choice: Choice) -> Result<(), VerifyError> {
        let (ort, tract) = ("everything in ONNX Runtime", "everything in tract");
        match (choice, OrtRuntime::new()) {
            (Choice::Tract, _) => {
                self.skip(ort, "only tract was asked for");
                self.skip_device("only tract was asked for, which runs on the CPU");
            }
            (_, Ok(runtime)) => self.runtimes.push(Box::new(runtime)),
            (Choice::Ort, Err(e)) => return Err(e.into()),
            (Choice::All, Err(e)) if OrtRuntime::is_named() => return Err(e.into()),
            (Choice::All, Err(e)) => {
                self.skip_device("ONNX Runtime is not there");
                self.progress.say(Say::Warning, &format!("{e}; {ort} is skipped"));
                let row = Check::skipped(ort, e.to_string());
                self.push(row.recorded_as(without_paths(&e)));
            }
        }
        match choice {
            Choice::Ort => self.skip(tract, "only ONNX Runtime was asked for"),
            _ if self.dtype == DType::BF16 => self.skip(tract, "it reads no bf16"),
            _ => self.runtimes.push(Box::new(TractRuntime)),
        }
        Ok(())
    }

    fn numbers(&mut self, options: &VerifyOptions) -> Result<(), VerifyError> {
        if self.served.rounds {
            self.served.bytes = self.bytes_limit()?;
        }
        if let Some(path) = &options.reference {
            self.reference(path)?;
        }
        self.skip_windows();
        match self.stateless {
            true => self.forms_at_once()?,
            false => self.forms()?,
        }
        self.interpreter()
    }

    fn finish(mut self) -> Verification {
        self.found.ok = self.found.checks.iter().all(|c| c.ok);
        let version = |runtime: &dyn Runtime| RuntimeVersion {
            name: runtime.name().to_owned(),
            version: runtime.version(),
        };
        self.found.runtimes = self.runtimes.iter().map(|runtime| version(runtime.as_ref())).collect();
        self.progress.done();
        self.found
    }

    /// What is only seen of a text that is longer than a window.
    fn skip_windows(&mut self) {
        let longest = self.prompts.longest().len();
        for tokens in self.prompts.uncrossed() {
            let reason = format!("the prompts of the proof have {longest} tokens, and do not cross it");
            self.skip(format!("a window of {tokens} tokens, crossed"), reason);
        }
    }

    /// Leaves out several comparisons. Where the bundle lies differs between machines.
    fn skip(&mut self, what: impl Into<String>, reason: impl AsRef<str>) {
        let place = format!("{}/", self.bundle.display());
        let row = Check::skipped(what, reason.as_ref().replace(&place, ""));
        self.push(row);
    }

    /// How far the serving graph may be from the forms, which compute in f32.
    fn served_limit(&self) -> f64 {
        match (self.served.rounds, self.dtype) {
            (true, _) => self.served.bytes,
            (false, DType::F32) => EXACT,
            (false, _) => HALF,
        }
    }

    fn stage(&mut self, what: &str) {
        self.progress.stage(what);
    }

    fn model(&self, runtime: usize, file: &str) -> Result<Model, VerifyError> {
        let runtime = self.runtimes[runtime].as_ref();
        let counts = self.served.counts && file == files::MODEL;
        Model::load(runtime, &self.bundle.join(file), &self.load_options(file), counts)
    }

    /// For complete prompts only, whatever the graph calls its caches.
    fn plain(&self, runtime: usize, file: &str) -> Result<Plain, VerifyError> {
        let site = self.manifest.sites.first();
        let head = site.map_or([0; 2], |site| [site.kv_heads, site.head_dim]);
        let runtime = self.runtimes[runtime].as_ref();
        let plain = Plain::load(runtime, &self.bundle.join(file), &self.load_options(file), head)?;
        Ok(plain.with_pictures(self.pictures.clone()))
    }

    fn load_options(&self, file: &str) -> LoadOptions {
        let unreleased = self.manifest.target.needs_unreleased_opset() && file == files::MODEL;
        LoadOptions { released_opsets_only: !unreleased, threads: self.threads, ..LoadOptions::default() }
    }

    /// What tract has no operator for in a graph that we did not make is left out, once another runtime
    /// has run the graph.
    fn tolerate<T>(
        &mut self,
        runtime: usize,
        what: &str,
        tried: Result<T, VerifyError>,
    ) -> Result<Option<T>, VerifyError> {
        let foreign = self.manifest.source.kind == SourceKind::Onnx;
        match tried {
            Err(e) if runtime > 0 && foreign => {
                let Some(reason) = missing_operator(&e) else { return Err(e) };
                self.skip(format!("{what} in {}", self.runtimes[runtime].name()), reason);
                Ok(None)
            }
            tried => tried.map(Some),
        }
    }

    /// Whether the serving graph runs in this runtime.
    fn serves(&self, runtime: usize) -> Result<(), &'static str> {
        let onnxruntime = self.runtimes[runtime].name() == ORT;
        match self.dtype {
            DType::BF16 => Err("the CPU has no bf16 arithmetic"),
            DType::F16 if !onnxruntime => Err("it sums half precision in half precision"),
            _ if self.served.grouped && !onnxruntime => Err("it has no GroupQueryAttention"),
            // What has no state has no LinearAttention either.
            _ if onnxruntime
                || self.is_softmax()
                || self.stateless
                || self.manifest.target == Target::Portable =>
            {
                Ok(())
            }
            _ => Err("it has no LinearAttention"),
        }
    }

    fn is_softmax(&self) -> bool {
        self.manifest.sites.iter().all(|site| !site.lowered)
    }

    /// Whether the model computes what it did: what was rewritten keeps its window.
    fn is_exact(&self) -> bool {
        self.manifest.sites.iter().all(|site| !site.is_linear())
    }

    /// The form that the others are compared with, and the one that takes a state.
    fn plain_forms(&self) -> (&'static str, &'static str) {
        if self.is_softmax() { (files::SOFTMAX, files::SOFTMAX) } else { (files::PARALLEL, files::CHUNKED) }
    }
}

/// A graph of a bundle. What there is to say of how it was read was said of the source.
fn read_back(path: &Path) -> Result<Graph, ImportError> {
    Ok(import::open(path)?.graph)
}

/// What a form is called in the names of rows.
fn word(file: &str) -> &str {
    match file {
        files::MODEL => "served",
        other => other.strip_suffix(".onnx").unwrap_or(other),
    }
}

/// Two graphs in one runtime, fed alike.
fn forms_alike(runtime: &str, subject: &str, reference: &str) -> Comparison {
    Comparison::new(
        format!("{runtime}: {} = {}", word(subject), word(reference)),
        format!("{subject} in {runtime}"),
        format!("{reference} in {runtime}"),
    )
}

/// Why there is no ONNX Runtime, without where it was looked for.
fn without_paths(error: &RuntimeError) -> String {
    match error {
        RuntimeError::LibraryMissing { .. } => "ONNX Runtime was not found".to_owned(),
        RuntimeError::LibraryTooOld { found, needed, .. } => {
            format!("ONNX Runtime {found} is too old, {needed} or newer is needed")
        }
        _ => "ONNX Runtime cannot be used".to_owned(),
    }
}

/// What tract says where it lacks an operator, or an operator for a type (`TDim` is its type of sizes).
const LACKING: [&str; 4] =
    ["does not support", "which tract does not have", "not implemented", "TDim is not a number"];

/// The line of an error that tells that the runtime lacks an operator.
fn missing_operator(error: &VerifyError) -> Option<&str> {
    match error {
        VerifyError::Runtime(RuntimeError::Load { reason, .. } | RuntimeError::Run { reason, .. }) => {
            LACKING.iter().any(|lack| reason.contains(lack)).then_some(reason)
        }
        _ => None,
    }
}
