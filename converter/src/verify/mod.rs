//! The proof of a bundle: every form of the model, in every runtime, against every other.
//!
//! Compared are the logits of all tokens, by the norm of the difference over the norm of the reference.
//! What is equal by construction must agree to rounding; the drift against softmax attention is reported
//! beside it and never passed off as equality.

mod bound;
mod features;
mod measure;
mod oracle;
mod plain;
mod prompts;
pub mod reference;
mod run;
mod whole;

use crate::onnx::import::{ImportError, import};
use crate::report::progress::Progress;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, SourceKind};
use dijiang_format::target::Target;
use dijiang_passes::attention::lower::tokens_first;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::verify::verify as violations;
use dijiang_passes::precision::widen::rounds_activations;
use dijiang_runtime::{OrtRuntime, Runtime, RuntimeError, TractRuntime};
use measure::{Drift, relative_error};
use oracle::{Rounding, Tables};
use plain::Plain;
use prompts::Prompts;
use reference::Reference;
use run::Model;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    pub measured: f64,
    /// Absent where the number is reported and nothing is required of it.
    pub limit: Option<f64>,
    pub ok: bool,
}

impl Check {
    fn within(name: impl Into<String>, measured: f64, limit: f64) -> Self {
        // A NaN is not within anything.
        Self { name: name.into(), measured, limit: Some(limit), ok: measured <= limit }
    }

    fn report(name: impl Into<String>, measured: f64) -> Self {
        Self { name: name.into(), measured, limit: None, ok: true }
    }
}

/// What was checked, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Verification {
    pub checks: Vec<Check>,
    /// One line each: what was left out, and why.
    pub skipped: Vec<String>,
    pub ok: bool,
}

/// Which runtimes take part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    Ort,
    Tract,
    /// Both; without an ONNX Runtime on the machine, tract alone, and the report says so.
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
    Import(#[from] ImportError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{file}: {reason}")]
    Model { file: String, reason: String },
}

/// What verification does beyond the defaults.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    pub runtimes: Choice,
    pub seed: u64,
    /// The source's own logits, see [`reference`].
    pub reference: Option<PathBuf>,
}

/// Verifies the bundle in a directory.
pub fn verify(
    bundle: &Path,
    options: &VerifyOptions,
    progress: &mut dyn Progress,
) -> Result<Verification, VerifyError> {
    let manifest = Manifest::read(bundle)?;
    let mut verifier = Verifier::new(bundle, &manifest, options, progress)?;
    verifier.well_formed()?;
    if let Some(path) = &options.reference {
        verifier.reference(path)?;
    }
    match verifier.is_stateless() {
        true => verifier.whole_forms()?,
        false => verifier.forms()?,
    }
    verifier.oracle()?;
    Ok(verifier.finish())
}

/// What quantising the weights does to the model as it came, in the f64 interpreter: to the softmax graph that is
/// given in both ways.
pub(crate) fn quantization_drift(
    float: &Graph,
    quantized: &Graph,
    manifest: &Manifest,
    seed: u64,
    progress: &mut dyn Progress,
) -> Result<Check, VerifyError> {
    progress.stage("evaluating without and with quantised weights");
    let row = Prompts::new(manifest, seed).short();
    let logits = |graph| oracle::evaluate(graph, Path::new(files::SOFTMAX), &row, Rounding::Nothing);
    let name = "drift of quantised weights: norm of the difference";
    match (logits(float)?, logits(quantized)?) {
        (Ok(float), Ok(quantized)) => Ok(Check::report(name, relative_error(&quantized, &float))),
        (Err(_), _) | (_, Err(_)) => Ok(Check::report(name, f64::NAN)),
    }
}

struct Verifier<'a> {
    bundle: &'a Path,
    manifest: &'a Manifest,
    dtype: DType,
    /// Whether products of the serving graph round their activations.
    rounds: bool,
    /// Whether the serving graph has ONNX Runtime's grouped attention in it.
    grouped: bool,
    /// Whether it counts the tokens of a row from its beginning, so that rows are padded behind.
    counts: bool,
    runtimes: Vec<Box<dyn Runtime>>,
    prompts: Prompts,
    progress: &'a mut dyn Progress,
    found: Verification,
}

/// What [`OrtRuntime`] calls itself.
const ORT: &str = "onnxruntime";

/// How far equal things may differ in f32 arithmetic: what rounding at 2⁻²⁴ grows to over some dozen layers.
const EXACT: f64 = 1e-4;
/// How far half-precision arithmetic may be from that: rounding of activations at 2⁻¹¹.
const HALF: f64 = 2e-2;
/// How far products with activations rounded to bytes may be: 2⁻⁸ of the largest in a block, over some dozen layers.
const BYTES: f64 = 5e-2;

/// Files that standard operators suffice for.
const PORTABLE: [&str; 3] = [files::PARALLEL, files::CHUNKED, files::SOFTMAX];

impl<'a> Verifier<'a> {
    fn new(
        bundle: &'a Path,
        manifest: &'a Manifest,
        options: &VerifyOptions,
        progress: &'a mut dyn Progress,
    ) -> Result<Self, VerifyError> {
        let mut found = Verification::default();
        let mut runtimes: Vec<Box<dyn Runtime>> = Vec::new();
        if options.runtimes != Choice::Tract {
            match OrtRuntime::new() {
                Ok(ort) => runtimes.push(Box::new(ort)),
                Err(e) if options.runtimes == Choice::Ort => return Err(e.into()),
                Err(e) => found.skipped.push(format!("everything in ONNX Runtime: {e}")),
            }
        }
        let dtype = manifest.dtype;
        match options.runtimes {
            Choice::Ort => {}
            _ if dtype == DType::BF16 => {
                found.skipped.push("everything in tract: it reads no bf16".to_owned());
            }
            _ => runtimes.push(Box::new(TractRuntime)),
        }
        let prompts = Prompts::new(manifest, options.seed);
        Ok(Self {
            bundle,
            manifest,
            dtype,
            rounds: false,
            grouped: false,
            counts: false,
            runtimes,
            prompts,
            progress,
            found,
        })
    }

    fn finish(mut self) -> Verification {
        self.found.ok = self.found.checks.iter().all(|c| c.ok);
        self.progress.done();
        self.found
    }

    fn skip(&mut self, what: impl Into<String>) {
        self.found.skipped.push(what.into());
    }

    fn compare(&mut self, name: impl Into<String>, limit: f64, logits: &[f32], reference: &[f32]) {
        let measured = relative_error(logits, reference);
        self.found.checks.push(Check::within(name, measured, limit));
    }

    /// How far the serving graph may be from the forms, which compute in f32.
    fn served_limit(&self) -> f64 {
        match (self.rounds, self.dtype) {
            (true, _) => BYTES,
            (false, DType::F32) => EXACT,
            (false, _) => HALF,
        }
    }

    fn stage(&mut self, what: &str) {
        self.progress.stage(what);
    }

    /// Every graph file reads back, and breaks no rule of the IR.
    fn well_formed(&mut self) -> Result<(), VerifyError> {
        self.stage("reading the graphs back");
        for file in [files::MODEL, files::PREFILL, files::DECODE].into_iter().chain(PORTABLE) {
            let path = self.bundle.join(file);
            if path.exists() {
                let graph = import(&path)?;
                let found = violations(&graph).len() as f64;
                self.rounds |= graph.nodes().any(|(_, node)| rounds_activations(&node.op));
                let grouped = graph.nodes().any(|(_, node)| node.op.name() == "GroupQueryAttention");
                // Graphs of earlier versions do not bring the tokens of a row to its beginning.
                let fronts = graph.nodes().any(|(_, node)| node.name.starts_with(tokens_first::RULE));
                self.grouped |= grouped;
                self.counts |= grouped && !fronts;
                self.found.checks.push(Check::within(
                    format!("{file} is well-formed: violations"),
                    found,
                    0.0,
                ));
            }
        }
        Ok(())
    }

    /// The softmax graph against what the source's own code computes.
    fn reference(&mut self, path: &Path) -> Result<(), VerifyError> {
        self.stage("comparing with the source's reference");
        let reference = Reference::read(path)?;
        // Weights that were rounded when they were converted are not the reference's.
        let rounded = self.dtype != DType::F32 && self.manifest.source.dtype != self.manifest.dtype;
        let limit = if rounded { HALF } else { EXACT };
        for i in 0..self.runtimes.len() {
            let logits = self.plain(i, files::SOFTMAX)?.masked(&reference.ids, &reference.mask)?;
            let name = self.runtimes[i].name();
            if self.manifest.weights.is_some() {
                let apart = relative_error(&logits, &reference.logits);
                let what = format!("{name}: drift of softmax from the reference, with quantised weights");
                self.found.checks.push(Check::report(what, apart));
                continue;
            }
            self.compare(format!("{name}: softmax = reference"), limit, &logits, &reference.logits);
        }
        Ok(())
    }

    fn model(&self, runtime: usize, file: &str) -> Result<Model, VerifyError> {
        let runtime = self.runtimes[runtime].as_ref();
        Model::load(
            runtime,
            &self.bundle.join(file),
            self.manifest.target.needs_unreleased_opset() && file == files::MODEL,
            self.counts && file == files::MODEL,
        )
    }

    /// For whole prompts only, whatever the graph calls its caches.
    fn plain(&self, runtime: usize, file: &str) -> Result<Plain, VerifyError> {
        let site = self.manifest.sites.first();
        let head = site.map_or([0; 2], |site| [site.kv_heads, site.head_dim]);
        let unreleased = self.manifest.target.needs_unreleased_opset() && file == files::MODEL;
        Plain::load(self.runtimes[runtime].as_ref(), &self.bundle.join(file), unreleased, head)
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
                self.skip(format!("{what} in {}: {reason}", self.runtimes[runtime].name()));
                Ok(None)
            }
            tried => tried.map(Some),
        }
    }

    /// Whether the bundle's graphs carry nothing from call to call, as encoders do.
    fn is_stateless(&self) -> bool {
        self.manifest.state.is_empty()
    }

    /// Whether the serving graph runs in this runtime.
    fn serves(&self, runtime: usize) -> Result<(), &'static str> {
        let onnxruntime = self.runtimes[runtime].name() == ORT;
        match self.dtype {
            DType::BF16 => Err("the CPU has no bf16 arithmetic"),
            DType::F16 if !onnxruntime => Err("it sums half precision in half precision"),
            _ if self.grouped && !onnxruntime => Err("it has no GroupQueryAttention"),
            // What has no state has no LinearAttention either.
            _ if onnxruntime
                || self.is_softmax()
                || self.is_stateless()
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

    /// The form that the others are compared with, and the one that takes a state.
    fn plain_forms(&self) -> (&'static str, &'static str) {
        if self.is_softmax() { (files::SOFTMAX, files::SOFTMAX) } else { (files::PARALLEL, files::CHUNKED) }
    }

    /// Parallel = chunked = served, whole = token by token = split = padded, runtime = runtime.
    fn forms(&mut self) -> Result<(), VerifyError> {
        let mut first: Option<Vec<f32>> = None;
        for i in 0..self.runtimes.len() {
            self.stage(&format!("comparing the forms in {}", self.runtimes[i].name()));
            let tried = self.forms_in(i, first.as_deref());
            let Some(reference) = self.tolerate(i, "the forms", tried)? else { continue };
            if first.is_none() && !self.is_softmax() {
                let mut softmax = self.plain(i, files::SOFTMAX)?;
                let numbers = softmax.padded(&self.prompts.rows(), !softmax.needs_right())?;
                self.drift(&reference, &numbers, softmax.gives_logits());
            }
            first.get_or_insert(reference);
        }
        Ok(())
    }

    /// Returns what the plain form gives.
    fn forms_in(&mut self, i: usize, first: Option<&[f32]>) -> Result<Vec<f32>, VerifyError> {
        let name = self.runtimes[i].name();
        let (plain, stateful) = self.plain_forms();
        let prompts = self.prompts.clone();
        let reference = self.model(i, plain)?.whole(&prompts)?;
        if stateful != plain {
            let chunked = self.model(i, stateful)?.whole(&prompts)?;
            self.compare(format!("{name}: chunked = parallel"), EXACT, &chunked, &reference);
        }
        if let Some(first) = first {
            self.compare("tract = onnxruntime", EXACT, &reference, first);
        }
        match self.serves(i) {
            Ok(()) => {
                let mut model = self.model(i, files::MODEL)?;
                let served = model.whole(&prompts)?;
                let limit = self.served_limit();
                self.compare(format!("{name}: served = parallel"), limit, &served, &reference);
                self.stepwise(i, &mut model, limit)?;
                if name == ORT {
                    self.bound_graphs(name, &reference)?;
                }
            }
            Err(reason) => {
                self.skip(format!("the serving graph in {name}: {reason}; {stateful} stands for it"));
                let mut model = self.model(i, stateful)?;
                self.stepwise(i, &mut model, EXACT)?;
            }
        }
        Ok(reference)
    }

    /// One graph fed in other portions: token by token, split, and with rows padded to the same length.
    /// A second runtime does a few tokens only: that its forms agree with the first one's is known by now.
    fn stepwise(&mut self, runtime: usize, model: &mut Model, limit: f64) -> Result<(), VerifyError> {
        let name = self.runtimes[runtime].name();
        self.stage(&format!("feeding token by token in {name}"));
        let row = if runtime == 0 { self.prompts.longest() } else { self.prompts.short() };
        let whole = model.row(&row)?;
        let steps = model.in_portions(&row, &vec![1; row.len()])?;
        self.compare(format!("{name}: token by token = whole"), limit, &steps, &whole);
        self.constant_state(name, &row, model)?;
        if runtime > 0 {
            return Ok(());
        }
        for cut in self.prompts.splits() {
            let parts = model.in_portions(&row, &[cut, row.len() - cut])?;
            self.compare(format!("{name}: split at {cut} = whole"), limit, &parts, &whole);
        }
        let alone = self.prompts.rows().iter().map(|r| model.row(r)).collect::<Result<Vec<_>, _>>()?.concat();
        if !model.sides().contains(&true) {
            self.skip(format!(
                "{name}: padded left = alone: the serving graph counts the tokens of a row from its beginning, and is wrong for rows that are padded there (hint: convert the model anew)"
            ));
        }
        for &left in model.sides() {
            let padded = model.padded(&self.prompts.rows(), left)?;
            let side = if left { "left" } else { "right" };
            self.compare(format!("{name}: padded {side} = alone"), limit, &padded, &alone);
        }
        Ok(())
    }

    /// A model without softmax layers holds as much after many tokens as after one.
    fn constant_state(&mut self, name: &str, row: &[i64], model: &mut Model) -> Result<(), VerifyError> {
        if model.grows() {
            return Ok(());
        }
        let bytes = model.state_bytes();
        model.row(&row[..1])?;
        let grown = bytes.abs_diff(model.state_bytes()) as f64;
        let what = format!("{name}: state bytes after {} tokens less those after 1", row.len());
        self.found.checks.push(Check::within(what, grown, 0.0));
        Ok(())
    }

    /// Features are compared by their norm, and logits as the distributions they stand for.
    fn drift(&mut self, linear: &[f32], softmax: &[f32], logits: bool) {
        let tokens: usize = self.prompts.rows().iter().map(Vec::len).sum();
        if !logits || !softmax.len().is_multiple_of(tokens) {
            let apart = relative_error(linear, softmax);
            self.found.checks.push(Check::report("drift from softmax: norm of the difference", apart));
            return;
        }
        let drift = Drift::measure(linear, softmax, softmax.len() / tokens);
        let reports = [
            ("drift from softmax: KL, nats per token", drift.kl),
            ("drift from softmax: share of tokens with the same argmax", drift.agreement),
        ];
        self.found.checks.extend(reports.map(|(name, measured)| Check::report(name, measured)));
    }

    /// The f64 interpreter on the serving graph, against the first runtime on a short prompt.
    fn oracle(&mut self) -> Result<(), VerifyError> {
        self.stage("evaluating in f64");
        let row = self.prompts.short();
        let path = self.bundle.join(files::MODEL);
        let served = import(&path)?;
        let exact = match oracle::evaluate(&served, &path, &row, Rounding::Nothing)? {
            Ok(exact) => exact,
            Err(unknown) => {
                self.skip(format!("the f64 interpreter: {unknown}"));
                return Ok(());
            }
        };
        let (plain, stateful) = self.plain_forms();
        let tables = Tables::of(&served);
        let rounding = tables.as_ref().map_or(Rounding::Nothing, Rounding::Turns);
        if self.runtimes.is_empty() {
            return self.served_exactly(plain, rounding, &exact);
        }
        if self.serves(0).is_ok() {
            return self.against_oracle(files::MODEL, self.served_limit(), &exact);
        }
        // The form that stands for the serving graph computes what that reads from tables.
        if tables.is_none() {
            return self.against_oracle(stateful, EXACT, &exact);
        }
        self.served_exactly(stateful, rounding, &exact)?;
        match oracle::logits(&self.bundle.join(stateful), &row, Rounding::Nothing)? {
            Ok(exact) => self.against_oracle(stateful, EXACT, &exact),
            Err(_) => Ok(()),
        }
    }

    /// The serving graph against another form, both in f64.
    fn served_exactly(
        &mut self,
        form: &str,
        rounding: Rounding<'_>,
        served: &[f32],
    ) -> Result<(), VerifyError> {
        let form = oracle::logits(&self.bundle.join(form), &self.prompts.short(), rounding)?;
        if let Ok(form) = form {
            self.compare("f64 interpreter: served = parallel", EXACT, served, &form);
        }
        Ok(())
    }

    /// A graph in the first runtime, against what the interpreter makes of it.
    fn against_oracle(&mut self, file: &str, limit: f64, exact: &[f32]) -> Result<(), VerifyError> {
        let row = self.prompts.short();
        let measured = match self.is_stateless() {
            true => self.plain(0, file)?.row(&row)?,
            false => self.model(0, file)?.row(&row)?,
        };
        self.compare(format!("{} = f64 interpreter", self.runtimes[0].name()), limit, &measured, exact);
        Ok(())
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
