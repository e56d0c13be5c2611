//! Puts the PyTorch model into a bundle: its code, and what `config.json` must say for transformers to find it.

use super::{KEY, description};
use crate::bundle::atomic::{BundleError, NewBundle};
use crate::bundle::checksums::checksums;
use crate::bundle::lock::{BundleLock, LockError};
use crate::checkpoint::{CheckpointError, Config};
use crate::provenance::opened::{self, NotAsWritten};
use dijiang_format::files;
use dijiang_format::manifest::{BundleFile, Manifest, ManifestError, SourceKind};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The code of the model.
const CODE: &str = include_str!("modeling_dijiang.py");
/// The module that [`files::TORCH`] is.
const MODULE: &str = "modeling_dijiang";

/// The families the code has, and their classes.
const CLASSES: [(&str, &str); 5] = [
    ("gpt_neox", "DijiangGptNeoxForCausalLM"),
    ("llama", "DijiangLlamaForCausalLM"),
    ("ministral", "DijiangLlamaForCausalLM"),
    ("mistral", "DijiangLlamaForCausalLM"),
    ("opt", "DijiangOptForCausalLM"),
];

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ExportTorchError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error(transparent)]
    Config(#[from] CheckpointError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(
        "{bundle}: it was made from an ONNX graph, and there is PyTorch code for checkpoints only (hint: convert the checkpoint)"
    )]
    FromOnnx { bundle: String },
    #[error("{bundle}: there is no PyTorch code for the family `{family}` (there is for: {known})")]
    Family { bundle: String, family: String, known: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
}

/// Writes the model into `bundle` and returns its class. Doing it again changes nothing.
pub fn export_torch(bundle: &Path) -> Result<&'static str, ExportTorchError> {
    let lock = BundleLock::acquire(bundle)?;
    let mut manifest = Manifest::float_weights(bundle)?;
    opened::check_described(bundle, &manifest)?;
    let class = class(bundle, &manifest)?;
    let path = bundle.join(files::CONFIG);
    let config = Config::read(&path)?;
    let text = with_class(&config, class, &description(bundle, &manifest)?);
    let text = text.map_err(|source| ExportTorchError::Json { path, source })?;
    for (name, text) in [(files::CONFIG, text.as_str()), (files::TORCH, CODE)] {
        manifest.put_file(BundleFile::of(name, text.as_bytes()));
    }
    let path = bundle.join(files::MANIFEST);
    let told = manifest.to_json().map_err(|source| ExportTorchError::Json { path, source })?;
    let sums = bundle.join(files::CHECKSUMS).exists().then(|| checksums(&manifest, &told));
    let anew = [
        (files::CONFIG, Some(text.as_str())),
        (files::TORCH, Some(CODE)),
        (files::MANIFEST, Some(told.as_str())),
        (files::CHECKSUMS, sums.as_deref()),
    ];
    let new = NewBundle::revise(bundle, &anew.map(|(name, _)| name), lock)?;
    for (name, text) in anew {
        let Some(text) = text else { continue };
        let written = std::fs::write(new.path().join(name), text);
        written.map_err(|source| ExportTorchError::Io { path: new.place(name), source })?;
    }
    new.commit()?;
    Ok(class)
}

fn class(bundle: &Path, manifest: &Manifest) -> Result<&'static str, ExportTorchError> {
    let bundle = bundle.display().to_string();
    if manifest.source.kind == SourceKind::Onnx {
        return Err(ExportTorchError::FromOnnx { bundle });
    }
    let family = &manifest.model.family;
    let found = CLASSES.iter().find(|(name, _)| name == family).map(|(_, class)| *class);
    found.ok_or_else(|| ExportTorchError::Family {
        bundle,
        family: family.clone(),
        known: CLASSES.map(|(name, _)| name).join(", "),
    })
}

/// The model's own keys stay. Its `model_type` does not: without the code, transformers would read the bundle as the
/// model it was converted from, and leave the new parameters out.
fn with_class(config: &Config, class: &str, description: &Value) -> serde_json::Result<String> {
    let mut values = config.values().clone();
    let auto_map = json!({
        "AutoConfig": format!("{MODULE}.DijiangConfig"),
        "AutoModelForCausalLM": format!("{MODULE}.{class}"),
    });
    let new = [
        ("architectures", json!([class])),
        ("auto_map", auto_map),
        (KEY, description.clone()),
        ("model_type", json!("dijiang")),
    ];
    values.extend(new.map(|(key, value)| (key.to_owned(), value)));
    Ok(serde_json::to_string_pretty(&values)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_has_every_class() {
        assert_eq!(files::TORCH, format!("{MODULE}.py"));
        for (family, class) in CLASSES {
            assert!(CODE.contains(&format!("\nclass {class}(DijiangForCausalLM):\n")), "{family}");
        }
    }
}
