//! The proof of a bundle: every form of the model, in every runtime, against every other.
//!
//! Compared are logits, as the largest difference over the largest logit of the reference. What is
//! equal by construction must agree to rounding; the drift against softmax attention is reported
//! beside it and never passed off as equality.

mod measure;
mod oracle;
mod prompts;
pub mod reference;
mod run;

use crate::bundle::layout;
use crate::bundle::manifest::{Manifest, ManifestError};
use crate::onnx::import::{ImportError, import};
use crate::progress::Progress;
use dijiang_passes::ir::dtype::{DType, UnknownDType};
use dijiang_passes::ir::verify::verify as violations;
use dijiang_runtime::{OrtRuntime, Runtime, RuntimeError, TractRuntime};
use measure::{Drift, relative_error};
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
    #[error(transparent)]
    DType(#[from] UnknownDType),
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
    if verifier.dtype == DType::BF16 {
        verifier.skip("the numerics: bf16 has no arithmetic on the CPU, in neither runtime");
        verifier.oracle_only()?;
        return Ok(verifier.finish());
    }
    if let Some(path) = &options.reference {
        verifier.reference(path)?;
    }
    match bundle.join(layout::PARALLEL).exists() {
        true => verifier.linear()?,
        false => verifier.softmax_only()?,
    }
    Ok(verifier.finish())
}

struct Verifier<'a> {
    bundle: &'a Path,
    manifest: &'a Manifest,
    dtype: DType,
    runtimes: Vec<Box<dyn Runtime>>,
    prompts: Prompts,
    progress: &'a mut dyn Progress,
    found: Verification,
}

/// What [`OrtRuntime`] calls itself.
const ORT: &str = "onnxruntime";

/// Files that standard operators suffice for.
const PORTABLE: [&str; 3] = [layout::PARALLEL, layout::CHUNKED, layout::SOFTMAX];

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
        if options.runtimes != Choice::Ort {
            runtimes.push(Box::new(TractRuntime));
        }
        let prompts = Prompts::new(manifest, bundle, options.seed);
        let dtype = manifest.dtype.parse()?;
        Ok(Self { bundle, manifest, dtype, runtimes, prompts, progress, found })
    }

    fn finish(mut self) -> Verification {
        self.found.ok = self.found.checks.iter().all(|c| c.ok);
        self.progress.done();
        self.found
    }

    /// How far equal things may differ: what rounding of activations leaves after a few layers, f32
    /// 2⁻²³ and f16 2⁻¹⁰ at each step.
    fn limit(&self) -> f64 {
        if self.dtype == DType::F32 { 1e-4 } else { 2e-2 }
    }

    fn skip(&mut self, what: impl Into<String>) {
        self.found.skipped.push(what.into());
    }

    fn check(&mut self, name: impl Into<String>, measured: f64) {
        let limit = self.limit();
        self.found.checks.push(Check::within(name, measured, limit));
    }

    fn stage(&mut self, what: &str) {
        self.progress.stage(what);
    }

    /// Every graph file reads back, and breaks no rule of the IR.
    fn well_formed(&mut self) -> Result<(), VerifyError> {
        self.stage("reading the graphs back");
        for file in std::iter::once(layout::MODEL).chain(PORTABLE) {
            let path = self.bundle.join(file);
            if path.exists() {
                let graph = import(&path)?;
                let found = violations(&graph).len() as f64;
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
        let softmax = self.bundle.join(layout::SOFTMAX).exists();
        let file = if softmax { layout::SOFTMAX } else { layout::MODEL };
        for i in 0..self.runtimes.len() {
            let logits = self.model(i, file)?.masked(&reference.ids, &reference.mask)?;
            let name = self.runtimes[i].name();
            self.check(format!("{name}: softmax = reference"), relative_error(&logits, &reference.logits));
        }
        Ok(())
    }

    fn model(&self, runtime: usize, file: &str) -> Result<Model, VerifyError> {
        let runtime = self.runtimes[runtime].as_ref();
        Model::load(
            runtime,
            &self.bundle.join(file),
            self.manifest.target == "onnx27" && file == layout::MODEL,
        )
    }

    /// Whether the serving graph runs in this runtime.
    fn serves(&self, runtime: usize) -> bool {
        self.runtimes[runtime].name() == ORT || self.manifest.target == "portable"
    }

    /// Parallel = chunked = served, whole = token by token = split = padded, runtime = runtime = oracle.
    fn linear(&mut self) -> Result<(), VerifyError> {
        let mut first: Option<Vec<f32>> = None;
        for i in 0..self.runtimes.len() {
            let name = self.runtimes[i].name();
            self.stage(&format!("comparing the forms in {name}"));
            let prompts = self.prompts.clone();
            let parallel = self.model(i, layout::PARALLEL)?.whole(&prompts)?;
            let chunked = self.model(i, layout::CHUNKED)?.whole(&prompts)?;
            self.check(format!("{name}: chunked = parallel"), relative_error(&chunked, &parallel));
            if let Some(first) = &first {
                self.check("tract = onnxruntime", relative_error(&parallel, first));
            }
            if self.serves(i) {
                let mut model = self.model(i, layout::MODEL)?;
                let served = model.whole(&prompts)?;
                self.check(format!("{name}: served = parallel"), relative_error(&served, &parallel));
                self.stepwise(name, &mut model)?;
            } else {
                self.skip(format!(
                    "the serving graph in {name}: it holds LinearAttention, which {name} has not"
                ));
                let mut chunked = self.model(i, layout::CHUNKED)?;
                self.stepwise(name, &mut chunked)?;
            }
            if first.is_none() {
                let softmax = self.model(i, layout::SOFTMAX)?.whole(&prompts)?;
                self.drift(&parallel, &softmax);
                first = Some(parallel);
            }
        }
        self.oracle()
    }

    /// One graph fed in other portions: token by token, split, and with rows padded to the same length.
    fn stepwise(&mut self, name: &str, model: &mut Model) -> Result<(), VerifyError> {
        self.stage(&format!("feeding token by token in {name}"));
        let row = self.prompts.longest();
        let whole = model.row(&row)?;
        let steps = model.in_portions(&row, &vec![1; row.len()])?;
        self.check(format!("{name}: token by token = whole"), relative_error(&steps, &whole));
        let bytes = model.state_bytes();
        for cut in self.prompts.splits() {
            let parts = model.in_portions(&row, &[cut, row.len() - cut])?;
            self.check(format!("{name}: split at {cut} = whole"), relative_error(&parts, &whole));
        }
        let alone = self.prompts.rows().iter().map(|r| model.row(r)).collect::<Result<Vec<_>, _>>()?.concat();
        for left in [true, false] {
            let padded = model.padded(&self.prompts.rows(), left)?;
            let side = if left { "left" } else { "right" };
            self.check(format!("{name}: padded {side} = alone"), relative_error(&padded, &alone));
        }
        model.row(&row[..1])?;
        if !model.grows() {
            let grown = bytes.abs_diff(model.state_bytes()) as f64;
            let what = format!("{name}: state bytes after {} tokens less those after 1", row.len());
            self.found.checks.push(Check::within(what, grown, 0.0));
        }
        Ok(())
    }

    fn drift(&mut self, linear: &[f32], softmax: &[f32]) {
        let drift = Drift::measure(linear, softmax, self.prompts.vocab());
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
        let exact = oracle::logits(&self.bundle.join(layout::MODEL), &row)?;
        let file = if self.serves(0) { layout::MODEL } else { layout::CHUNKED };
        let mut model = self.model(0, file)?;
        let measured = model.row(&row)?;
        let name = self.runtimes[0].name();
        self.check(format!("{name} = f64 interpreter"), relative_error(&measured, &exact));
        Ok(())
    }

    /// For element types that no runtime computes in here: the forms in the interpreter alone.
    fn oracle_only(&mut self) -> Result<(), VerifyError> {
        if !self.bundle.join(layout::PARALLEL).exists() {
            return Ok(());
        }
        self.stage("evaluating in f64");
        let row = self.prompts.short();
        let served = oracle::logits(&self.bundle.join(layout::MODEL), &row)?;
        for file in [layout::PARALLEL, layout::CHUNKED] {
            let other = oracle::logits(&self.bundle.join(file), &row)?;
            let error = relative_error(&other, &served);
            self.found.checks.push(Check::within(format!("f64 interpreter: {file} = served"), error, 1e-6));
        }
        Ok(())
    }

    /// A bundle of nothing but softmax layers.
    fn softmax_only(&mut self) -> Result<(), VerifyError> {
        let mut first: Option<Vec<f32>> = None;
        for i in 0..self.runtimes.len() {
            let name = self.runtimes[i].name();
            self.stage(&format!("running the model in {name}"));
            let mut model = self.model(i, layout::MODEL)?;
            let whole = model.whole(&self.prompts.clone())?;
            if let Some(first) = &first {
                self.check("tract = onnxruntime", relative_error(&whole, first));
            }
            // tract prepares a plan for every length of a growing cache.
            if name == ORT || self.runtimes.len() == 1 {
                self.stepwise(name, &mut model)?;
            }
            first.get_or_insert(whole);
        }
        self.oracle()
    }
}
