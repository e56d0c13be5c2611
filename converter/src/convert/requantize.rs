//! A bundle made anew with weights of fewer bits: those it has now, trained or not, in place of its source's.
//!
//! The weights of a bundle are called as in the checkpoint that it was made from, and its config lies beside them, so
//! it is converted like that checkpoint. What the conversion added is taken over as it is.

use crate::bundle::lock::{BundleLock, LockError};
use crate::checkpoint::{CheckpointError, Config, Weights};
use crate::convert::source::{self, SourceError};
use crate::convert::{Before, Conversion, ConvertError, ConvertOptions, Converted, convert_opened};
use crate::provenance::opened::{self, NotAsWritten};
use crate::report::progress::Progress;
use crate::torch;
use crate::verify::VerifyOptions;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, SourceKind};
use dijiang_format::quantization::Quantization;
use dijiang_passes::feature_map::added::is_added;
use dijiang_runtime::temporary;
use std::path::Path;

/// How to make a bundle anew.
#[derive(Debug, Clone)]
pub struct RequantizeOptions {
    pub weights: Quantization,
    /// Replace a bundle that is there.
    pub force: bool,
    /// Write the digests of all files as `sha256sum` reads them.
    pub checksums: bool,
    /// `None` writes without a proof.
    pub verify: Option<VerifyOptions>,
}

/// A bundle cannot be made anew; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RequantizeError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error("{bundle}: it was changed while it was read (hint: quantize it once more)")]
    Changed { bundle: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(
        "{bundle}: it was made from an ONNX graph, which is not in it (hint: convert the graph with --weights {weights})"
    )]
    FromOnnx { bundle: String, weights: &'static str },
    #[error(
        "{bundle}: its {} is that of the PyTorch model (hint: convert the model anew, `import-weights` what was trained into that, and quantize it)",
        files::CONFIG
    )]
    Exported { bundle: String },
    #[error(transparent)]
    Convert(#[from] Box<ConvertError>),
}

/// Writes the bundle at `bundle` to `target` with the weights of its linear layers in fewer bits.
pub fn requantize(
    bundle: &Path,
    target: &Path,
    options: &RequantizeOptions,
    progress: &mut dyn Progress,
) -> Result<Converted, RequantizeError> {
    progress.stage("reading the bundle");
    let place = || bundle.display().to_string();
    // A bundle that is replaced stays what it is from the first look at it on.
    let is_replaced =
        std::fs::canonicalize(target).is_ok_and(|t| bundle.canonicalize().is_ok_and(|b| b == t));
    let lock = is_replaced.then(|| BundleLock::acquire(bundle)).transpose()?;
    // Before anything is refused: a run that was killed after its last step leaves a bundle that is refused.
    temporary::tidy(target);
    let manifest = Manifest::float_weights(bundle)?;
    opened::check_described(bundle, &manifest)?;
    if manifest.source.kind == SourceKind::Onnx {
        return Err(RequantizeError::FromOnnx { bundle: place(), weights: options.weights.name() });
    }
    if torch::is_exported(&Config::read(&bundle.join(files::CONFIG))?) {
        return Err(RequantizeError::Exported { bundle: place() });
    }
    let how = as_before(&manifest, options);
    let weights = Weights::read(&bundle.join(files::WEIGHTS))?;
    let added = weights.tensors().filter(|(name, _)| is_added(name));
    let added = added.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let opened = source::open(bundle, how.dtype)?;
    if Manifest::float_weights(bundle)? != manifest {
        return Err(RequantizeError::Changed { bundle: place() });
    }
    let before = Before { manifest, added };
    // The conversion takes it anew; weights that took the place of these in between are found before it commits.
    drop(lock);
    let conversion = Conversion { before: Some(&before), ..Conversion::new(bundle, target, &how) };
    convert_opened(opened, conversion, progress).map_err(|error| Box::new(error).into())
}

/// The options of the conversion that made the bundle, with the weights as they are to be.
fn as_before(manifest: &Manifest, options: &RequantizeOptions) -> ConvertOptions {
    let linear = manifest.sites.iter().filter(|site| site.lowered).map(|site| site.layer).collect();
    ConvertOptions {
        target: manifest.target,
        dtype: Some(manifest.dtype),
        weights: Some(options.weights),
        layers: Some(linear),
        seed: manifest.seed,
        force: options.force,
        checksums: options.checksums,
        verify: options.verify.clone(),
        ..ConvertOptions::of(manifest.recipe.clone())
    }
}
