//! Which model a bundle holds: what tells it from another whose states and weights have the same shapes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::tensor::Metadata;

use dijiang_format::digest::{Hasher, digest};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_format::names::TABLES;
use dijiang_format::weight_header::{LENGTH_BYTES, MOST_HEADER};

use crate::session::error::RuntimeError;

/// The digests of a bundle's model, SHA-256 in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Of the digests of all weights.
    pub weights: String,
    /// Of what they were converted from, and how.
    pub conversion: String,
}

impl ModelIdentity {
    /// The model of a bundle. Reads the weights where the manifest has no digests of them, or where they are linked.
    pub fn of(bundle: &Path) -> Result<Self, RuntimeError> {
        Parts::open(bundle, &Manifest::read(bundle)?)?.identity()
    }
}

/// What an identity is made of. What must be read for it is open, so that it stays that of the bundle as it was opened,
/// whatever takes the bundle's place.
#[derive(Debug)]
struct Parts {
    /// The digests of the bundle's own weights by their names, or the file to take them from. A graph may hold its
    /// weights itself: then there are none.
    own: Result<BTreeMap<String, String>, Opened>,
    linked: Vec<Opened>,
    conversion: String,
}

impl Parts {
    fn open(bundle: &Path, manifest: &Manifest) -> Result<Self, RuntimeError> {
        let opened = |name: &str| Opened::at(&bundle.join(name));
        let own = match &manifest.digests {
            Some(digests) => Ok(digests.tensors.clone()),
            None => opened(files::WEIGHTS)?.map_or(Ok(BTreeMap::new()), Err),
        };
        let linked: Result<Vec<Option<Opened>>, _> =
            manifest.linked.iter().map(|name| opened(name)).collect();
        let conversion =
            conversion(manifest).map_err(|e| failed(&bundle.join(files::MANIFEST), e.to_string()))?;
        Ok(Self { own, linked: linked?.into_iter().flatten().collect(), conversion })
    }

    /// Whether nothing must be read for it.
    fn is_told(&self) -> bool {
        self.own.is_ok() && self.linked.is_empty()
    }

    fn identity(&self) -> Result<ModelIdentity, RuntimeError> {
        let mut own = match &self.own {
            Ok(digests) => digests.clone(),
            Err(file) => file.as_opened(file.digests())?,
        };
        // They differ with the target, between which a state goes.
        own.retain(|name, _| !name.starts_with(TABLES));
        let mut weights = Hasher::default();
        for (name, digest) in &own {
            weights.update(format!("{digest} {name}\n").as_bytes());
        }
        for file in &self.linked {
            file.as_opened(file.add_to(&mut weights, 0, file.bytes))?;
        }
        Ok(ModelIdentity { weights: weights.finish(), conversion: self.conversion.clone() })
    }
}

/// What was converted and how. What serves the model, and in which form, is not in it: a state goes from one runtime or
/// target to another. Nor are names of files, which may be moved.
fn conversion(manifest: &Manifest) -> serde_json::Result<String> {
    let files = manifest.source.files.iter();
    let files: Vec<_> = files.map(|file| (&file.sha256, &file.safetensors_header_sha256)).collect();
    let mut hasher = Hasher::default();
    for part in [
        serde_json::to_string(&manifest.recipe)?,
        serde_json::to_string(&manifest.sites)?,
        serde_json::to_string(&files)?,
    ] {
        hasher.update(part.as_bytes());
        hasher.update(b"\n");
    }
    Ok(hasher.finish())
}

fn failed(path: &Path, reason: String) -> RuntimeError {
    RuntimeError::Bundle { path: path.to_path_buf(), reason }
}

/// A weight file that is open, of the size and time that it had then.
#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    bytes: u64,
    written: SystemTime,
}

impl Opened {
    /// `None` where there is no file.
    fn at(path: &Path) -> Result<Option<Self>, RuntimeError> {
        let open = || -> io::Result<Option<Self>> {
            let file = match File::open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let (bytes, written) = (file.metadata()?.len(), file.metadata()?.modified()?);
            Ok(Some(Self { path: path.to_owned(), file, bytes, written }))
        };
        open().map_err(|e| failed(path, e.to_string()))
    }

    fn add_to(&self, hasher: &mut Hasher, begin: u64, end: u64) -> Result<(), RuntimeError> {
        let mut part = Part { file: &self.file, at: begin, end };
        hasher.read(&mut part).map_err(|e| failed(&self.path, e.to_string()))
    }

    /// Of each tensor, as the manifest of a bundle has them.
    fn digests(&self) -> Result<BTreeMap<String, String>, RuntimeError> {
        let failed = |reason: String| failed(&self.path, reason);
        let mut length = [0; LENGTH_BYTES];
        self.file.read_exact_at(&mut length, 0).map_err(|e| failed(e.to_string()))?;
        let length = u64::from_le_bytes(length);
        if length > MOST_HEADER.min(self.bytes) {
            return Err(failed(format!("its header is {length} bytes, the file {}", self.bytes)));
        }
        let mut header = vec![0; length as usize];
        self.file.read_exact_at(&mut header, LENGTH_BYTES as u64).map_err(|e| failed(e.to_string()))?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| failed(e.to_string()))?;
        let start = LENGTH_BYTES as u64 + length;
        let mut digests = BTreeMap::new();
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let mut hasher = Hasher::default();
            let (begin, end) = info.data_offsets;
            self.add_to(&mut hasher, start + begin as u64, start + end as u64)?;
            digests.insert(name, hasher.finish());
        }
        Ok(digests)
    }

    /// What was read of the file, where it is what was opened.
    fn as_opened<T>(&self, read: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        let now = self.file.metadata().and_then(|file| Ok((file.len(), file.modified()?)));
        match now.is_ok_and(|now| now == (self.bytes, self.written)) {
            true => read,
            false => Err(failed(&self.path, "it was changed since it was opened".to_owned())),
        }
    }
}

/// A part of a file, which may be shorter by now.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.at).min(into.len() as u64) as usize;
        let read = self.file.read_at(&mut into[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The model that is served.
#[derive(Debug)]
pub(crate) struct Model {
    bundle: PathBuf,
    parts: Parts,
    /// Known at once, except where the weights must be read for it.
    identity: Option<ModelIdentity>,
}

impl Model {
    pub(crate) fn of(bundle: &Path, manifest: &Manifest) -> Result<Self, RuntimeError> {
        let parts = Parts::open(bundle, manifest)?;
        let identity = parts.is_told().then(|| parts.identity()).transpose()?;
        Ok(Self { bundle: bundle.to_path_buf(), parts, identity })
    }

    /// What a state says of this model.
    pub(crate) fn writer(&self) -> Result<StateOrigin, RuntimeError> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => self.parts.identity()?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::digest::WeightDigests;

    /// A copy of a bundle of version 0.1.0, whose manifest has no digests.
    fn bundle() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/bundle-0.1.0");
        for name in [files::MANIFEST, files::WEIGHTS] {
            std::fs::copy(fixture.join(name), home.path().join(name)).unwrap();
        }
        home
    }

    /// Writes the manifest with changes.
    fn changed(bundle: &Path, change: impl FnOnce(&mut Manifest)) -> ModelIdentity {
        let mut manifest = Manifest::read(bundle).unwrap();
        change(&mut manifest);
        std::fs::write(bundle.join(files::MANIFEST), manifest.to_json().unwrap()).unwrap();
        ModelIdentity::of(bundle).unwrap()
    }

    #[test]
    fn it_is_the_same_whether_the_manifest_has_digests_or_not() {
        let home = bundle();
        let without = ModelIdentity::of(home.path()).unwrap();
        let path = home.path().join(files::WEIGHTS);
        let digests = Opened::at(&path).unwrap().unwrap().digests().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let expected: BTreeMap<String, String> =
            file.tensors().into_iter().map(|(name, tensor)| (name, digest(tensor.data()))).collect();
        assert_eq!(digests, expected);
        let with = changed(home.path(), |manifest| {
            manifest.digests = Some(WeightDigests { header: "h".to_owned(), tensors: digests });
        });
        assert_eq!(with, without);
        // Rotations of one target's operator are no part of the model.
        let with = changed(home.path(), |manifest| {
            let tensors = &mut manifest.digests.as_mut().unwrap().tensors;
            tensors.insert(format!("{TABLES}0.cos"), "00".to_owned());
        });
        assert_eq!(with, without);
        let other = changed(home.path(), |manifest| {
            let tensors = &mut manifest.digests.as_mut().unwrap().tensors;
            tensors.values_mut().next_back().unwrap().replace_range(0..1, "x");
        });
        assert_ne!(other.weights, without.weights);
    }

    /// Such as `rope_theta`, which is in no weight.
    #[test]
    fn what_the_config_says_is_a_part_of_it() {
        let home = bundle();
        let before = ModelIdentity::of(home.path()).unwrap();
        let moved =
            changed(home.path(), |manifest| "other.json".clone_into(&mut manifest.source.files[0].name));
        assert_eq!(moved, before);
        let other = changed(home.path(), |manifest| manifest.source.files[0].sha256 = Some("00".to_owned()));
        assert_eq!(other.weights, before.weights);
        assert_ne!(other.conversion, before.conversion);
    }

    #[test]
    fn a_state_names_the_model_that_was_opened() {
        let home = bundle();
        let path = home.path().join(files::WEIGHTS);
        let mut bytes = std::fs::read(&path).unwrap();
        for linked in [false, true] {
            if linked {
                std::fs::copy(&path, home.path().join("source-w.safetensors")).unwrap();
                changed(home.path(), |manifest| manifest.linked = vec!["source-w.safetensors".to_owned()]);
            }
            let file = if linked { home.path().join("source-w.safetensors") } else { path.clone() };
            let model = Model::of(home.path(), &Manifest::read(home.path()).unwrap()).unwrap();
            let before = model.writer().unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            crate::write_file(&file, &bytes).unwrap();
            assert_eq!(model.writer().unwrap(), before);
            let now = Model::of(home.path(), &Manifest::read(home.path()).unwrap()).unwrap();
            assert_ne!(now.writer().unwrap(), before);
            // The same file, written over.
            std::fs::write(&file, b"short").unwrap();
            let error = now.writer().unwrap_err().to_string();
            assert!(error.contains("it was changed since it was opened"), "{error}");
            std::fs::write(&file, &bytes).unwrap();
        }
    }
}
