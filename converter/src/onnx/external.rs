//! The files that external data lies in: found beside the model and nowhere else, never read in one piece.
//!
//! A location is a path below the model's directory. Links are followed, but must end in the
//! model's directory or in the one that the model file really lies in: in a snapshot of a Hugging Face
//! cache every file is a link into `../../blobs/`. A hard link from elsewhere cannot be told from a file
//! of the directory, so it is read.

use super::initializer::dims;
use super::proto::{EXTERNAL, TensorProto};
use super::{dtype, initializer};
use crate::bundle::stored_file::StoredFile;
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_format::regular;
use dijiang_passes::ir::tensor::{ReadError, Storage as _, Tensor};
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Why a location is refused; `None` where it is a path below the model's directory.
pub(crate) fn location_problem(location: &str) -> Option<&'static str> {
    if location.is_empty() {
        return Some("is empty");
    }
    if location.contains('\0') {
        return Some("holds a NUL");
    }
    if location.contains('\\') {
        return Some("holds a backslash (hint: directories are separated by `/`)");
    }
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    (!Path::new(location).components().all(inside)).then_some("leaves the directory of the model file")
}

/// The external data of one model, each file opened once.
pub(super) struct ExternalFiles {
    model: PathBuf,
    opened: BTreeMap<PathBuf, Arc<StoredFile>>,
}

impl ExternalFiles {
    pub(super) fn beside(model: &Path) -> Self {
        Self { model: model.to_owned(), opened: BTreeMap::new() }
    }

    /// An initialiser, wherever its elements lie.
    pub(super) fn read(&mut self, proto: &TensorProto) -> Result<Tensor, String> {
        if proto.data_location != EXTERNAL {
            return initializer::read_inline(proto);
        }
        let (dtype, dims) = (dtype::from_number(proto.data_type)?, dims(proto)?);
        let location = entry(proto, "location").ok_or("its external data has no `location`")?;
        let file = self.open(location)?;
        let size = file.size();
        let offset = number(proto, "offset")?.unwrap_or(0);
        let Some(rest) = size.checked_sub(offset) else {
            return Err(format!("offset {offset} lies past the end of `{}` ({size} bytes)", shown(location)));
        };
        // Without a length the tensor takes what its dims say.
        let length = number(proto, "length")?.unwrap_or_else(|| described(dtype, &dims).unwrap_or(rest));
        if length > rest {
            return Err(format!(
                "{length} bytes at {offset} lie past the end of `{}` ({size} bytes)",
                shown(location)
            ));
        }
        Tensor::view(dtype, dims, file, offset, length).map_err(|e| e.to_string())
    }

    fn open(&mut self, location: &str) -> Result<Arc<StoredFile>, String> {
        if let Some(problem) = location_problem(location) {
            return Err(format!("the external data location `{}` {problem}", shown(location)));
        }
        let normal = |c: &Component<'_>| matches!(c, Component::Normal(_));
        let relative: PathBuf = Path::new(location).components().filter(normal).collect();
        if let Some(file) = self.opened.get(&relative) {
            return Ok(file.clone());
        }
        let file = self.find(&relative).map_err(|e| format!("external data `{}`: {e}", shown(location)))?;
        let file = Arc::new(file);
        self.opened.insert(relative, file.clone());
        Ok(file)
    }

    /// Where they lie.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let directory = directory_of(&self.model);
        self.opened.keys().map(|relative| directory.join(relative)).collect()
    }

    /// Whether all that was read of them was there.
    pub(super) fn check(&self) -> Result<(), ReadError> {
        self.opened.values().find_map(|file| file.problem()).map_or(Ok(()), Err)
    }

    fn find(&self, relative: &Path) -> Result<StoredFile, String> {
        let directory = directory_of(&self.model);
        let real = std::fs::canonicalize(directory.join(relative)).map_err(|e| missing(&e))?;
        let real_model = std::fs::canonicalize(&self.model).ok();
        let allowed = [std::fs::canonicalize(directory).ok(), real_model.as_deref().map(owned_directory)];
        if !allowed.iter().flatten().any(|root| real.starts_with(root)) {
            return Err(
                "it is a link that leaves the directory of the model file (hint: put the file itself there)"
                    .to_owned(),
            );
        }
        let file = regular::open(&real).map_err(|e| e.to_string())?;
        let metadata = file.metadata().map_err(|e| e.to_string())?;
        let is_model = |model: &Path| model.metadata().is_ok_and(|m| same_file(&m, &metadata));
        if real_model.is_some_and(|model| is_model(&model)) {
            return Err("it is the model file itself".to_owned());
        }
        StoredFile::of(file, &directory.join(relative)).map_err(|e| e.to_string())
    }
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

fn owned_directory(file: &Path) -> PathBuf {
    directory_of(file).to_owned()
}

/// Models saved by an ONNX Runtime session still name the data of the model they were made of.
fn missing(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "{error} (hint: it must lie beside the model file; a model saved by an ONNX Runtime session needs the data of the model it was made of)"
        ),
        _ => error.to_string(),
    }
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Bytes that dims take, where they can be counted.
fn described(dtype: DType, dims: &[u64]) -> Option<usize> {
    let bytes = dims.iter().try_fold(dtype.size() as u64, |n, d| n.checked_mul(*d))?;
    usize::try_from(bytes).ok()
}

fn entry<'p>(proto: &'p TensorProto, key: &str) -> Option<&'p str> {
    proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str())
}

fn number(proto: &TensorProto, key: &str) -> Result<Option<usize>, String> {
    let Some(text) = entry(proto, key) else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number
        .map(Some)
        .ok_or_else(|| format!("{key} `{}` of its external data is not a number of bytes", shown(text)))
}
