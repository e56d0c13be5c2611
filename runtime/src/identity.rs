//! Which model a bundle holds: what tells it from another whose states and weights have the same shapes.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::RuntimeError;

const MANIFEST: &str = "dijiang.json";
const WEIGHTS: &str = "model.safetensors";

/// The keys of the manifest that say how the model was converted. What serves it, and in which form, is not in it: a
/// state goes from one runtime or target to another.
const CONVERSION: [&str; 2] = ["recipe", "sites"];

/// The digests of a bundle's model, SHA-256 in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Of all weights: of their digests where the manifest has them, of their files otherwise.
    pub weights: String,
    /// Of how they were converted.
    pub conversion: String,
}

impl ModelIdentity {
    /// The model of a bundle. Reads the weights where an earlier version wrote the bundle, or where they are linked.
    pub fn of(bundle: &Path) -> Result<Self, RuntimeError> {
        Self::from_manifest(bundle, &manifest(bundle)?)
    }

    fn from_manifest(bundle: &Path, manifest: &Value) -> Result<Self, RuntimeError> {
        let mut weights = Sha256::new();
        match manifest.get("digests") {
            Some(digests) => weights.update(digests.to_string()),
            None => add_file(&mut weights, &bundle.join(WEIGHTS))?,
        }
        for name in linked(manifest) {
            add_file(&mut weights, &bundle.join(name))?;
        }
        let mut conversion = Sha256::new();
        for key in CONVERSION {
            conversion.update(manifest.get(key).unwrap_or(&Value::Null).to_string());
            conversion.update("\n");
        }
        Ok(Self { weights: hexadecimal(weights), conversion: hexadecimal(conversion) })
    }
}

fn linked(manifest: &Value) -> impl Iterator<Item = &str> {
    manifest.get("linked").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn manifest(bundle: &Path) -> Result<Value, RuntimeError> {
    let path = bundle.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|e| e.to_string());
    let read = bytes.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    read.map_err(|reason| RuntimeError::Bundle { path, reason })
}

/// A graph may hold its weights itself: then there is no file.
fn add_file(hasher: &mut Sha256, path: &Path) -> Result<(), RuntimeError> {
    let mut add = || -> std::io::Result<()> {
        let mut file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => return Ok(()),
                n => hasher.update(&block[..n]),
            }
        }
    };
    add().map_err(|e| RuntimeError::Bundle { path: path.to_path_buf(), reason: e.to_string() })
}

fn hexadecimal(hasher: Sha256) -> String {
    let mut text = String::new();
    for byte in hasher.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The model that is served.
#[derive(Debug)]
pub(crate) struct Model {
    bundle: PathBuf,
    /// Known at once, except where the weights must be read for it.
    identity: Option<ModelIdentity>,
}

impl Model {
    pub(crate) fn of(bundle: &Path) -> Result<Self, RuntimeError> {
        let manifest = manifest(bundle)?;
        let is_told = manifest.get("digests").is_some() && linked(&manifest).next().is_none();
        let identity = is_told.then(|| ModelIdentity::from_manifest(bundle, &manifest)).transpose()?;
        Ok(Self { bundle: bundle.to_path_buf(), identity })
    }

    /// What a state says of this model.
    pub(crate) fn writer(&self) -> Result<Writer, RuntimeError> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => ModelIdentity::of(&self.bundle)?,
        };
        let model = hexadecimal(Sha256::new_with_prefix(identity.weights + "\n" + &identity.conversion));
        let whole = self.bundle.canonicalize().unwrap_or_else(|_| self.bundle.clone());
        let bundle = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Writer { model, bundle })
    }

    /// Refuses the state of another model; `writer` is what the file says.
    pub(crate) fn check(&self, path: &Path, writer: Option<Writer>) -> Result<(), RuntimeError> {
        let Some(writer) = writer else {
            tracing::warn!(
                "state {}: it does not say which model wrote it, as those of earlier versions; it is taken for one of {} (hint: --save-state writes it anew)",
                path.display(),
                self.bundle.display()
            );
            return Ok(());
        };
        if writer.model == self.writer()?.model {
            return Ok(());
        }
        let (path, bundle) = (path.to_path_buf(), self.bundle.clone());
        Err(RuntimeError::StateOfAnother { path, writer: writer.bundle, bundle })
    }
}

/// What wrote a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    /// The digest of its model.
    model: String,
    /// What the bundle was called.
    bundle: String,
}

impl Writer {
    pub(crate) fn parse(text: &str) -> Self {
        let (model, bundle) = text.split_once(' ').unwrap_or((text, "?"));
        Self { model: model.to_owned(), bundle: bundle.to_owned() }
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.model, self.bundle)
    }
}
