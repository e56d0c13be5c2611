//! Puts trained weights into a bundle, whose graphs then serve them. Names, shapes and places in the file stay as they
//! are, so no graph changes.

use super::{KEY, description};
use crate::bundle::atomic::{BundleError, NewBundle};
use crate::bundle::checksums::checksums;
use crate::bundle::finite::NotFinite;
use crate::bundle::lock::{BundleLock, LockError};
use crate::bundle::stored_file;
use crate::bundle::weights::{LayoutError, WeightFile};
use crate::checkpoint::{CheckpointError, Config, Stored, Weights};
use crate::provenance::opened::{self, NotAsWritten};
use crate::report::message::shown;
use crate::report::progress::Progress;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, SourceFile};
use dijiang_format::names::TABLES;
use dijiang_passes::ir::tensor::{ReadError, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What came of it.
#[derive(Debug, Clone)]
pub struct Imported {
    pub tensors: usize,
    /// How many were stored as another type than the bundle's: from, to, tensors.
    pub cast: BTreeMap<(DType, DType), usize>,
    pub weights: SourceFile,
}

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}: tensor `{tensor}` is missing; the bundle has it with shape {shape:?}", file.display())]
    Missing { file: PathBuf, tensor: String, shape: Vec<u64> },
    #[error("{}: the bundle has no tensor `{}`{hint}", file.display(), shown(tensor))]
    Unknown { file: PathBuf, tensor: String, hint: String },
    #[error("{}: tensor `{tensor}` has shape {found:?}; the bundle has {expected:?}", file.display())]
    Shape { file: PathBuf, tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("{}: tensor `{tensor}` has element type {}; expected {expected}", file.display(), shown(found))]
    Type { file: PathBuf, tensor: String, found: String, expected: &'static str },
    #[error(
        "{}: tensor `{tensor}` is not what `{tied}` is, and the model has one table for both (hint: train with them tied)",
        file.display()
    )]
    Untied { file: PathBuf, tensor: String, tied: String },
    #[error("{}: tensor `{tensor}` holds {what}{hint}", file.display())]
    NotFinite { file: PathBuf, tensor: String, what: &'static str, hint: String },
    #[error("{}: `{KEY}.{key}` is not that of the bundle: these weights were trained from another conversion", config.display())]
    Foreign { config: PathBuf, key: String },
    #[error("{}: its layout is not that of this version (hint: convert the model anew)", file.display())]
    OldLayout { file: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the manifest: {0}")]
    Json(#[from] serde_json::Error),
}

/// A tied output projection, which a file may hold again, and the table that it is.
const TIED: [(&str, &str); 5] = [
    ("embed_out.weight", "gpt_neox.embed_in.weight"),
    ("lm_head.weight", "transformer.word_embeddings.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    ("lm_head.weight", "model.embed_tokens.weight"),
];

/// Replaces the weights of `bundle` by those of `from`: a safetensors file, the index of several, or a directory with
/// either. Floats become the element type that the bundle stores.
pub fn import_weights(
    bundle: &Path,
    from: &Path,
    progress: &mut dyn Progress,
) -> Result<Imported, ImportError> {
    progress.stage("comparing the weights");
    let lock = BundleLock::acquire(bundle)?;
    let mut manifest = Manifest::float_weights(bundle)?;
    opened::check_described(bundle, &manifest)?;
    let own = Weights::read(&bundle.join(files::WEIGHTS))?;
    let new = Weights::read(from)?;
    check_origin(bundle, &manifest, &new.dir)?;
    let pairs = Pairs { own: &own, new: &new };
    pairs.check_names()?;
    let tensors = pairs.matched()?;
    check_finite(&new, &tensors)?;
    let file = WeightFile::plan(tensors.iter().map(|(name, tensor)| (*name, tensor)))?;
    check_layout(&bundle.join(files::WEIGHTS), &file)?;

    let has_checksums = bundle.join(files::CHECKSUMS).exists();
    let revised = NewBundle::revise(bundle, &[files::WEIGHTS, files::MANIFEST, files::CHECKSUMS], lock)?;
    progress.bytes("writing the weights", file.size());
    let path = revised.path().join(files::WEIGHTS);
    let io = |source| ImportError::Io { path: revised.place(files::WEIGHTS), source };
    let mut out = File::create(&path).map_err(io)?;
    let written = file.write(&mut out, &mut |bytes| progress.advance(bytes)).map_err(io)?;
    stored_file::check(own.tensors().chain(new.tensors()).map(|(_, tensor)| tensor))?;
    let before = manifest.digests.take();
    let all = || written.digests.tensors.keys().cloned().collect();
    manifest.add_training(
        "import-weights",
        before.map_or_else(all, |before| before.differences(&written.digests)),
    );
    manifest.digests = Some(written.digests);
    let weights = SourceFile::describe_whole(&path)?;
    manifest.put_file(weights.clone().into());
    manifest.trained = Some(weights.clone());
    // They were of other weights.
    manifest.checks.clear();
    manifest.runtimes.clear();
    let text = manifest.to_json()?;
    let write = |name: &str, text: &str| {
        let written = std::fs::write(revised.path().join(name), text);
        written.map_err(|source| ImportError::Io { path: revised.place(name), source })
    };
    write(files::MANIFEST, &text)?;
    if has_checksums {
        write(files::CHECKSUMS, &checksums(&manifest, &text))?;
    }
    progress.stage("making it durable");
    revised.commit()?;
    progress.done();
    Ok(Imported { tensors: tensors.len(), cast: pairs.cast(), weights })
}

/// Weights that lie beside a config of [`super::export`] must come from this bundle.
fn check_origin(bundle: &Path, manifest: &Manifest, dir: &Path) -> Result<(), ImportError> {
    let config = dir.join(files::CONFIG);
    if !config.is_file() {
        return Ok(());
    }
    let values = Config::read(&config)?;
    let Some(found) = values.values().get(KEY) else { return Ok(()) };
    let own = description(bundle, manifest)?;
    let differs = own.as_object().into_iter().flatten().find(|(key, value)| found.get(key) != Some(value));
    match differs {
        None => Ok(()),
        Some((key, _)) => Err(ImportError::Foreign { config, key: key.clone() }),
    }
}

/// The graphs point into the file by byte.
fn check_layout(path: &Path, file: &WeightFile) -> Result<(), ImportError> {
    let head = file.head();
    let mut found = Vec::new();
    let read = File::open(path).and_then(|f| f.take(head.len() as u64).read_to_end(&mut found));
    read.map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
    if found == head { Ok(()) } else { Err(ImportError::OldLayout { file: path.to_owned() }) }
}

/// The bundle's own weights and the new ones.
struct Pairs<'a> {
    own: &'a Weights,
    new: &'a Weights,
}

impl<'a> Pairs<'a> {
    fn check_names(&self) -> Result<(), ImportError> {
        let unknown = self.new.stored().find(|(name, _)| self.own.get_key(name).is_none());
        match unknown {
            None => Ok(()),
            Some((name, stored)) => self.check_unknown(name, stored),
        }
    }

    fn check_unknown(&self, name: &str, stored: &Stored) -> Result<(), ImportError> {
        let file = self.new.file_of(stored).to_owned();
        let tied = TIED.iter().find(|(head, table)| *head == name && self.own.get_key(table).is_some());
        let Some((_, table)) = tied else {
            let hint = self.hint(name);
            return Err(ImportError::Unknown { file, tensor: name.to_owned(), hint });
        };
        let same = self.new.get_key(table).is_some_and(|(_, other)| is_same(stored, other));
        match same {
            true => Ok(()),
            false => Err(ImportError::Untied { file, tensor: name.to_owned(), tied: (*table).to_owned() }),
        }
    }

    /// What wraps a model puts its own prefix before every name.
    fn hint(&self, name: &str) -> String {
        let prefixes = ["module.", "_orig_mod.", "_fsdp_wrapped_module."];
        let wrapped =
            prefixes.iter().find(|p| name.starts_with(*p) && self.own.get_key(&name[p.len()..]).is_some());
        wrapped.map_or_else(String::new, |p| {
            format!(" (hint: save the model inside the wrapper that adds `{p}`)")
        })
    }

    /// The new tensors under the names of the bundle, as the types it stores.
    fn matched(&self) -> Result<BTreeMap<&'a str, Tensor>, ImportError> {
        self.own.tensors().map(|(name, tensor)| Ok((name, self.matching(name, tensor)?))).collect()
    }

    fn matching(&self, name: &str, own: &Tensor) -> Result<Tensor, ImportError> {
        let tensor = || name.to_owned();
        if name.starts_with(TABLES) {
            return Ok(own.clone());
        }
        let Some((_, stored)) = self.new.get_key(name) else {
            let file = self.new.place().to_owned();
            return Err(ImportError::Missing { file, tensor: tensor(), shape: own.dims().to_vec() });
        };
        let file = || self.new.file_of(stored).to_owned();
        let is_float = own.dtype().is_float();
        let expected = if is_float { "f32, f16, bf16 or f64" } else { own.dtype().name() };
        let wrong_type = |found: &str| ImportError::Type {
            file: file(),
            tensor: tensor(),
            found: found.to_owned(),
            expected,
        };
        let new = stored.tensor.as_ref().map_err(|found| wrong_type(found))?;
        if new.dtype() != own.dtype() && !(is_float && new.dtype().is_float()) {
            return Err(wrong_type(new.dtype().name()));
        }
        if new.dims() != own.dims() {
            let (found, expected) = (new.dims().to_vec(), own.dims().to_vec());
            return Err(ImportError::Shape { file: file(), tensor: tensor(), found, expected });
        }
        Ok(new.cast(own.dtype()))
    }

    fn cast(&self) -> BTreeMap<(DType, DType), usize> {
        let mut counts = BTreeMap::new();
        let types = self.own.tensors().filter_map(|(name, own)| {
            let new = self.new.get_key(name)?.1.tensor.as_ref().ok()?;
            (new.dtype() != own.dtype()).then_some((new.dtype(), own.dtype()))
        });
        types.for_each(|pair| *counts.entry(pair).or_default() += 1);
        counts
    }
}

fn is_same(a: &Stored, b: &Stored) -> bool {
    let (Ok(a), Ok(b)) = (&a.tensor, &b.tensor) else { return false };
    (a.dtype(), a.dims()) == (b.dtype(), b.dims()) && a.bytes() == b.bytes()
}

/// The first tensor, by name, with a number that is none.
fn check_finite(new: &Weights, tensors: &BTreeMap<&str, Tensor>) -> Result<(), ImportError> {
    let found = tensors.par_iter().find_first(|(_, tensor)| !is_finite(tensor));
    let Some((name, tensor)) = found else { return Ok(()) };
    let stored = new.get_key(name).map(|(_, stored)| stored);
    let file = stored.map_or_else(|| new.place(), |stored| new.file_of(stored)).to_owned();
    let as_it_came = stored.and_then(|s| s.tensor.as_ref().ok()).is_some_and(is_finite);
    let (what, hint) = match as_it_came {
        true => ("a number too large", format!(" for {}, which the bundle stores", tensor.dtype())),
        false => ("NaN or infinity", " (hint: did the training diverge?)".to_owned()),
    };
    Err(ImportError::NotFinite { file, tensor: (*name).to_owned(), what, hint })
}

fn is_finite(tensor: &Tensor) -> bool {
    let mut found = NotFinite::default();
    let mut look = |block: &[u8]| {
        found.count(tensor.dtype(), block);
        if found.is_none() { Ok(()) } else { Err(ControlFlow::Break(())) }
    };
    tensor.for_each_block::<ControlFlow<()>>(&mut look).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_that_is_no_number_is_found() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            for (value, finite) in [
                (0.0, true),
                (-65504.0, true),
                (f64::NAN, false),
                (f64::INFINITY, false),
                (f64::NEG_INFINITY, false),
            ] {
                let mut values = vec![1.0f32; 3000];
                values[2999] = value as f32;
                let tensor = Tensor::from_f32(&[3000], &values).cast(dtype);
                assert_eq!(is_finite(&tensor), finite, "{dtype} {value}");
            }
        }
        assert!(!is_finite(&Tensor::from_f32(&[1], &[65520.0]).cast(DType::F16)), "it rounds to infinity");
        assert!(is_finite(&Tensor::from_i64(&[1], &[-1])));
    }
}
