//! A bundle as a PyTorch model, and its trained weights back: for training where the graphs do not reach, such as
//! over several GPUs.

pub mod export;
pub mod import;

use crate::checkpoint::Config;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, SourceFile};
use serde_json::{Value, json};
use std::path::Path;

/// The key of `config.json` that says what was converted, and how.
const KEY: &str = "dijiang";

/// Whether a config is that of the PyTorch model.
pub(crate) fn is_exported(config: &Config) -> bool {
    config.values().contains_key(KEY)
}

/// The value of [`KEY`]: what the PyTorch model must know besides the model's own config, and the digest that tells
/// whether weights belong to the bundle.
fn description(bundle: &Path, manifest: &Manifest) -> Result<Value, ManifestError> {
    let linear: Vec<usize> = manifest.sites.iter().filter(|s| s.lowered).map(|s| s.layer).collect();
    let weights = SourceFile::describe(&bundle.join(files::WEIGHTS))?;
    Ok(json!({
        "family": manifest.model.family,
        "recipe": manifest.recipe,
        "linear_layers": linear,
        "weights_header_sha256": weights.safetensors_header_sha256,
    }))
}
