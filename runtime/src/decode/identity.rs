//! Which model a bundle holds: what tells it from another whose states and weights have the same shapes.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use dijiang_format::digest::{Hasher, digest};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;

use crate::session::error::RuntimeError;

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
        Self::from_manifest(bundle, &Manifest::read(bundle)?)
    }

    fn from_manifest(bundle: &Path, manifest: &Manifest) -> Result<Self, RuntimeError> {
        let text = |json: serde_json::Result<String>| {
            let path = bundle.join(files::MANIFEST);
            json.map_err(|e| RuntimeError::Bundle { path, reason: e.to_string() })
        };
        let mut weights = Hasher::default();
        match &manifest.digests {
            Some(digests) => weights.update(text(serde_json::to_string(digests))?.as_bytes()),
            None => add_file(&mut weights, &bundle.join(files::WEIGHTS))?,
        }
        for name in &manifest.linked {
            add_file(&mut weights, &bundle.join(name))?;
        }
        // What serves the model, and in which form, is not in it: a state goes from one runtime or target to another.
        let mut conversion = Hasher::default();
        for part in [serde_json::to_string(&manifest.recipe), serde_json::to_string(&manifest.sites)] {
            conversion.update(text(part)?.as_bytes());
            conversion.update(b"\n");
        }
        Ok(Self { weights: weights.finish(), conversion: conversion.finish() })
    }
}

/// A graph may hold its weights itself: then there is no file.
fn add_file(hasher: &mut Hasher, path: &Path) -> Result<(), RuntimeError> {
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

/// The model that is served.
#[derive(Debug)]
pub(crate) struct Model {
    bundle: PathBuf,
    /// Known at once, except where the weights must be read for it.
    identity: Option<ModelIdentity>,
}

impl Model {
    pub(crate) fn of(bundle: &Path, manifest: &Manifest) -> Result<Self, RuntimeError> {
        let is_told = manifest.digests.is_some() && manifest.linked.is_empty();
        let identity = is_told.then(|| ModelIdentity::from_manifest(bundle, manifest)).transpose()?;
        Ok(Self { bundle: bundle.to_path_buf(), identity })
    }

    /// What a state says of this model.
    pub(crate) fn writer(&self) -> Result<StateOrigin, RuntimeError> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => ModelIdentity::of(&self.bundle)?,
        };
        let model = digest((identity.weights + "\n" + &identity.conversion).as_bytes());
        let whole = self.bundle.canonicalize().unwrap_or_else(|_| self.bundle.clone());
        let bundle = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(StateOrigin { model, bundle })
    }

    /// Refuses the state of another model; `writer` is what the file says.
    pub(crate) fn check(&self, path: &Path, writer: Option<StateOrigin>) -> Result<(), RuntimeError> {
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
pub(crate) struct StateOrigin {
    /// The digest of its model.
    model: String,
    /// What the bundle was called.
    bundle: String,
}

impl StateOrigin {
    pub(crate) fn parse(text: &str) -> Self {
        let (model, bundle) = text.split_once(' ').unwrap_or((text, "?"));
        Self { model: model.to_owned(), bundle: bundle.to_owned() }
    }
}

impl fmt::Display for StateOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.model, self.bundle)
    }
}
