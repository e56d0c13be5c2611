//! What a bundle is, in a screen: by its manifest and the sizes of its files. Nothing is run, and no weights are read:
//! they are looked at as whatever serves them looks.

use super::opened::{self, NotAsWritten};
use crate::bundle::model_files;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{
    Extent, Manifest, ManifestError, Options, RuntimeVersion, Site, SourceFile, SourceKind, State, Training,
};
use dijiang_format::quantization::Quantization;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// A bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    pub bundle: PathBuf,
    pub source: SourceKind,
    pub family: String,
    pub source_dtype: DType,
    pub source_files: Vec<SourceFile>,
    pub recipe: String,
    pub target: &'static str,
    pub dtype: DType,
    /// How the weights of linear layers are stored, where it is not that element type.
    pub weights: Option<&'static str>,
    pub seed: u64,
    pub linear: Vec<String>,
    /// Those that keep the window they have, with a state of its size.
    pub windows: Vec<String>,
    pub softmax: Vec<String>,
    /// Of all its files.
    pub bytes: u64,
    pub state: StateSize,
    pub checks: Checks,
    pub training: Option<Training>,
    pub options: Option<Options>,
    pub dijiang_version: String,
    pub runtimes: Vec<RuntimeVersion>,
}

/// What the model keeps of one text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StateSize {
    /// Whatever its length.
    pub bytes: u64,
    /// Besides, for every token.
    pub bytes_per_token: u64,
}

/// The checks that the bundle passed before it was put in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checks {
    pub held: usize,
    pub failed: Vec<String>,
    /// What was left out, and why.
    pub skipped: BTreeMap<String, String>,
}

/// A bundle is not told.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Reads what a bundle is.
pub fn info(bundle: &Path) -> Result<Info, InfoError> {
    let manifest = Manifest::read(bundle)?;
    opened::check(bundle, &manifest)?;
    let bytes =
        model_files::bytes(bundle).map_err(|source| InfoError::Io { path: bundle.to_owned(), source })?;
    let names = |is_so: fn(&Site) -> bool| {
        let sites = manifest.sites.iter().filter(|site| is_so(site));
        sites.map(|site| site.name.clone()).collect::<Vec<_>>()
    };
    let missed = manifest.misses.iter().map(|miss| miss.node.clone());
    Ok(Info {
        bundle: bundle.to_owned(),
        linear: names(Site::is_linear),
        windows: names(Site::keeps_window),
        softmax: names(|site| !site.lowered).into_iter().chain(missed).collect(),
        bytes,
        state: state_size(&manifest.state),
        checks: checks(&manifest),
        source: manifest.source.kind,
        family: manifest.model.family,
        source_dtype: manifest.source.dtype,
        source_files: manifest.source.files,
        recipe: manifest.recipe.name,
        target: manifest.target.name(),
        dtype: manifest.dtype,
        weights: manifest.weights.map(Quantization::name),
        seed: manifest.seed,
        training: manifest.training,
        options: manifest.options,
        dijiang_version: manifest.dijiang_version,
        runtimes: manifest.runtimes,
    })
}

fn state_size(state: &[State]) -> StateSize {
    let mut size = StateSize::default();
    for one in state {
        // The first dim is that of sequences side by side.
        let dims = one.shape.iter().skip(1);
        let known: u64 = dims
            .clone()
            .filter_map(|dim| match dim {
                Extent::Known(n) => Some(*n),
                Extent::Open(_) => None,
            })
            .product();
        let bytes = known * one.dtype.size() as u64;
        match dims.clone().any(|dim| matches!(dim, Extent::Open(_))) {
            true => size.bytes_per_token += bytes,
            false => size.bytes += bytes,
        }
    }
    size
}

fn checks(manifest: &Manifest) -> Checks {
    let mut checks = Checks::default();
    for check in &manifest.checks {
        match (check.ok, &check.skipped) {
            (Some(true), _) => checks.held += 1,
            (Some(false), _) => checks.failed.push(check.name.clone()),
            (None, reason) => {
                drop(checks.skipped.insert(check.name.clone(), reason.clone().unwrap_or_default()));
            }
        }
    }
    checks
}

impl Info {
    /// One fact a line, its name first.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let source = match self.source {
            SourceKind::Checkpoint => format!("a checkpoint of the family {}", self.family),
            SourceKind::Onnx => "an ONNX graph".to_owned(),
        };
        let mut lines = vec![("source", format!("{source}, {}", self.source_dtype))];
        let width = self.source_files.iter().map(|file| file.name.len()).max().unwrap_or(0);
        lines.extend(self.source_files.iter().map(|file| ("", of_source(file, width))));
        let weights = self.weights.map_or(String::new(), |weights| format!(", {weights} weights"));
        lines.push(("recipe", self.recipe.clone()));
        lines.push(("target", format!("{}, {}{weights}", self.target, self.dtype)));
        let named = |what: &str, names: &[String]| match names.len() {
            0 => String::new(),
            n => format!(", {n} {what}: {}", names.join(", ")),
        };
        let windows = named("by their windows", &self.windows);
        let kept = named("softmax", &self.softmax);
        lines.push(("attentions", format!("{} linear{windows}{kept}", self.linear.len())));
        lines.push(("bytes", self.bytes.to_string()));
        let grows = match self.state.bytes_per_token {
            0 => String::new(),
            n => format!(", and {n} for every token"),
        };
        lines.push(("state", format!("{} bytes for a sequence{grows}", self.state.bytes)));
        lines.push(("checks", self.checks_line()));
        lines.extend(self.checks.skipped.iter().map(|(name, why)| ("", format!("skipped {name}: {why}"))));
        lines.push(("training", self.training_line()));
        let runtimes = self.runtimes.iter().map(|runtime| format!(", {} {}", runtime.name, runtime.version));
        lines.push(("versions", format!("dijiang {}{}", self.dijiang_version, runtimes.collect::<String>())));
        lines
    }

    fn checks_line(&self) -> String {
        let Checks { held, failed, skipped } = &self.checks;
        match (held, failed.len(), skipped.len()) {
            (0, 0, 0) => "none of these weights (hint: dijiang verify)".to_owned(),
            (held, 0, 0) => format!("{held} held"),
            (held, 0, skipped) => format!("{held} held, {skipped} skipped"),
            (held, _, skipped) => {
                format!("{held} held, {skipped} skipped, failed: {}", failed.join(", "))
            }
        }
    }

    fn training_line(&self) -> String {
        let Some(training) = &self.training else { return "none".to_owned() };
        let runs: Vec<&str> = training.runs.iter().map(|run| run.command.as_str()).collect();
        format!("{}: {} tensors of {} changed", runs.join(", "), training.tensors.len(), files::WEIGHTS)
    }
}

fn of_source(file: &SourceFile, width: usize) -> String {
    let digest = match (&file.sha256, &file.safetensors_header_sha256) {
        (Some(digest), _) => format!("  sha256 {digest}"),
        (None, Some(digest)) => format!("  sha256 of its header {digest}"),
        (None, None) => String::new(),
    };
    format!("{:width$}  {:>12} bytes{digest}", file.name, file.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(shape: Vec<Extent>) -> State {
        State { name: "s".to_owned(), shape, dtype: DType::F16 }
    }

    #[test]
    fn a_cache_grows_and_a_linear_state_does_not() {
        let open = |name: &str| Extent::Open(name.to_owned());
        let linear = state(vec![open("batch"), Extent::Known(3), Extent::Known(8)]);
        let cache = state(vec![open("batch"), Extent::Known(2), open("past"), Extent::Known(4)]);
        assert_eq!(state_size(&[linear, cache]), StateSize { bytes: 48, bytes_per_token: 16 });
    }
}
