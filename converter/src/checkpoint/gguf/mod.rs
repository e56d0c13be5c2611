//! GGUF, the file of llama.cpp: what it says of a model as the config and the tensors that the families take.
//!
//! The file is read as the published layout has it (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), by code of
//! our own: it is small, and a file from anywhere must end in a model or in one line of error.

mod architectures;
mod blocks;
mod config;
mod cursor;
mod elements;
mod error;
mod header;
mod kinds;
mod rope;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tokens;
mod value;

pub use error::GgufError;

use super::config::Config;
use super::error::CheckpointError;
use super::texts::Texts;
use super::weights::Weights;
use crate::bundle::stored_file::StoredFile;
use architectures::Architecture;
use config::Described;
use dijiang_format::regular;
use dijiang_passes::ir::tensor::SharedBytes;
use header::Header;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use value::Value;

/// What a GGUF file ends in.
const EXTENSION: &str = "gguf";

/// A file as a checkpoint.
pub(super) struct Opened {
    pub(super) config: Config,
    pub(super) weights: Weights,
    pub(super) texts: Texts,
    pub(super) notes: Vec<String>,
}

/// What a file calls the tensors of its model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names(&'static Architecture);

impl Names {
    /// The tensor that transformers calls so.
    pub(super) fn of(self, name: &str) -> Option<String> {
        self.0.name_in_file(name)
    }
}

/// Whether a path is that of a GGUF file, by its name or, as some programs store it under none, by what it begins with.
pub fn is_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let is_named = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    let begins = || {
        let mut found = [0; header::MAGIC.len()];
        let read = regular::open(path).and_then(|mut file| file.read_exact(&mut found));
        read.is_ok() && found == *header::MAGIC
    };
    is_named(EXTENSION) || !is_named("onnx") && begins()
}

/// The directory of a file.
pub(super) fn dir(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// Opens a file. No tensor is read but those that say how positions are rotated.
pub(super) fn open(path: &Path) -> Result<Opened, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let bytes: SharedBytes = Arc::new(StoredFile::open(path).map_err(io)?);
    read(&bytes, path)
}

/// The same of bytes; `path` is what errors name.
pub(super) fn read(bytes: &SharedBytes, path: &Path) -> Result<Opened, CheckpointError> {
    let header = Header::read(bytes, path)?;
    let architecture = architecture(&header)?;
    let Described { config, heads, mut notes } = config::describe(&header, architecture)?;
    let tensors = tensors::all(&header, architecture, heads)?;
    notes.extend(tensors::note(&header));
    let weights = Weights::of_gguf(path, tensors, Names(architecture));
    let mut texts = Texts::new(dir(path));
    tokenizer::write(&header, &mut texts)?;
    texts.add(dijiang_format::files::CONFIG, pretty(&config));
    Ok(Opened { config, weights, texts, notes })
}

fn architecture(header: &Header) -> Result<&'static Architecture, CheckpointError> {
    const PARTS: &str = "split.count";
    const KIND: &str = "general.type";
    const HINT: &str = "name the file of the model itself";
    if let Some(count) = header.count(PARTS)?.filter(|count| *count > 1) {
        return Err(GgufError::Split { path: header.path.clone(), count }.into());
    }
    match header.text(KIND)? {
        None | Some("model") => architectures::find(header),
        Some(other) => Err(header.refused(KIND, &Value::Text(other.to_owned()), "`model`", HINT)),
    }
}

fn pretty(config: &Config) -> Vec<u8> {
    let values = serde_json::Value::Object(config.values().clone());
    format!("{values:#}\n").into_bytes()
}
