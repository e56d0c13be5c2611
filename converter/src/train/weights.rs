//! The trained weights of a bundle: read from its weight file as f32, and written back in the element types
//! they are stored in. Nothing moves in the file, so the graphs that point into it stay as they are.

use crate::bundle::layout;
use crate::bundle::replace::replace_file;
use crate::checkpoint::{self, CheckpointError};
use crate::stored_file::StoredFile;
use dijiang_passes::ir::dtype::DType;
use dijiang_passes::ir::tensor::{ReadError, SharedBytes, Storage as _, Tensor};
use dijiang_passes::training::lora::Addition;
use dijiang_passes::training::parameters::{Group, Layout, Parameter};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The weight file does not fit what is trained.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Format(#[from] Box<CheckpointError>),
    #[error("{}: `{name}` is not there (hint: convert the model anew)", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: `{name}` is {found:?}, expected {expected:?} (hint: convert the model anew)", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("{}: `{name}` holds {dtype} elements, which cannot be trained", path.display())]
    Type { path: PathBuf, name: String, dtype: String },
}

/// An open weight file.
pub struct Weights {
    path: PathBuf,
    file: Arc<StoredFile>,
    /// Those that are trained, as they lie in the file.
    stored: BTreeMap<String, Tensor>,
    /// Trained in place of the weights that they are added to.
    additions: Vec<Addition>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({})", self.path.display())
    }
}

impl Weights {
    /// Opens the weight file of a bundle and finds what is trained.
    pub fn open(bundle: &Path, trained: &Layout) -> Result<Self, WeightsError> {
        Self::with_additions(bundle, trained, Vec::new())
    }

    /// The same where some of what is trained is not in the file, but is added to weights that are.
    pub fn with_additions(
        bundle: &Path,
        trained: &Layout,
        additions: Vec<Addition>,
    ) -> Result<Self, WeightsError> {
        let path = bundle.join(layout::WEIGHTS);
        let io = |source| WeightsError::Io { path: path.clone(), source };
        let file = Arc::new(StoredFile::open(&path).map_err(io)?);
        let bytes: SharedBytes = file.clone();
        let all = checkpoint::read_header(&bytes, &path).map_err(Box::new)?;
        let mut stored = BTreeMap::new();
        let added = |name: &str| additions.iter().any(|a| a.down.0 == name || a.up.0 == name);
        let own = trained.parameters().filter(|p| !added(&p.name)).cloned();
        for parameter in own.chain(additions.iter().map(Addition::weight)) {
            let name = parameter.name.clone();
            let Some(found) = all.get(&name).cloned() else {
                return Err(WeightsError::Missing { path, name });
            };
            let dtype =
                found.as_ref().map_or_else(Clone::clone, |tensor| tensor.dtype().name().to_uppercase());
            let tensor = found.ok().filter(|tensor| tensor.dtype().is_float());
            let Some(tensor) = tensor else { return Err(WeightsError::Type { path, name, dtype }) };
            if tensor.dims() != parameter.dims {
                let (found, expected) = (tensor.dims().to_vec(), parameter.dims.clone());
                return Err(WeightsError::Shape { path, name, found, expected });
            }
            stored.insert(name, tensor);
        }
        Ok(Self { path, file, stored, additions })
    }

    /// The flat vector of a group.
    pub fn flat(&self, group: &Group) -> Result<Vec<f32>, WeightsError> {
        let mut flat = vec![0.0; group.len()];
        for (at, parameter) in group.offsets() {
            let part = &mut flat[at..at + parameter.len()];
            let numbers = self.numbers(&parameter.name);
            part.iter_mut().zip(numbers).for_each(|(to, from)| *to = from);
        }
        self.check()?;
        Ok(flat)
    }

    /// Whether all that was read of the file was there.
    fn check(&self) -> Result<(), ReadError> {
        self.file.problem().map_or(Ok(()), Err)
    }

    /// All bytes of the file.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.file.size()];
        self.file.read(0, &mut bytes);
        bytes
    }

    /// Where a weight lies in the file.
    fn place(&self, name: &str) -> Option<(usize, DType)> {
        let tensor = self.stored.get(name)?;
        Some((tensor.place()?.1, tensor.dtype()))
    }

    /// The numbers of a weight in the file, or those that an addition begins with.
    fn numbers(&self, name: &str) -> Vec<f32> {
        let in_file = self.stored.get(name).cloned();
        let added = || {
            let parts = self.additions.iter().flat_map(|addition| [&addition.down, &addition.up]);
            parts.into_iter().find(|(own, _)| own == name).map(|(_, numbers)| numbers.clone())
        };
        let numbers = in_file.or_else(added).map(|tensor| tensor.to_f64());
        // All names were found when the file was opened.
        numbers.unwrap_or_default().into_iter().map(|number| number as f32).collect()
    }

    /// Replaces the file by one with new numbers for the trained weights, whole or not at all.
    pub fn replace(&self, groups: &[(&Group, &[f32])]) -> Result<(), WeightsError> {
        let io = |source| WeightsError::Io { path: self.path.clone(), source };
        let mut bytes = self.bytes();
        let mut put = |name: &str, dims: &[u64], numbers: &[f32]| {
            // What an addition is trained in place of is not in the file.
            let Some((at, dtype)) = self.place(name) else { return };
            let tensor = Tensor::from_f32(dims, numbers).cast(dtype);
            bytes[at..at + tensor.byte_len()].copy_from_slice(&tensor.bytes());
        };
        let mut trained: BTreeMap<&str, &[f32]> = BTreeMap::new();
        for (group, flat) in groups {
            for (at, parameter) in group.offsets() {
                let numbers = &flat[at..at + parameter.len()];
                trained.insert(&parameter.name, numbers);
                put(&parameter.name, &parameter.dims, numbers);
            }
        }
        for addition in &self.additions {
            let [Some(down), Some(up)] = [&addition.down, &addition.up].map(|(name, _)| trained.get(&**name))
            else {
                continue;
            };
            let Parameter { name, dims } = addition.weight();
            let own = self.numbers(&name);
            let sum: Vec<f32> = own.iter().zip(addition.product(down, up)).map(|(w, p)| w + p).collect();
            put(&name, &dims, &sum);
        }
        self.check()?;
        replace_file(&self.path, &bytes).map_err(io)
    }
}

impl Weights {
    /// Replaces the file by one with new numbers for some of the trained weights, whole or not at all.
    pub fn replace_some<'a>(
        &self,
        values: impl Iterator<Item = (&'a String, &'a Tensor)>,
    ) -> Result<(), WeightsError> {
        let mut bytes = self.bytes();
        for (name, tensor) in values {
            let missing = || WeightsError::Missing { path: self.path.clone(), name: name.clone() };
            let (at, dtype) = self.place(name).ok_or_else(missing)?;
            let tensor = tensor.cast(dtype);
            bytes[at..at + tensor.byte_len()].copy_from_slice(&tensor.bytes());
        }
        self.check()?;
        replace_file(&self.path, &bytes)
            .map_err(|source| WeightsError::Io { path: self.path.clone(), source })
    }
}
