//! The trained weights of a bundle: read from its weight file as f32, and written back in the element types
//! they are stored in. Nothing moves in the file, so the graphs that point into it stay as they are.

use crate::bundle::replace::replace_file;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_passes::ir::tensor::Tensor;
use dijiang_passes::training::lora::Addition;
use dijiang_passes::training::parameters::{Group, Layout, Parameter};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The weight file does not fit what is trained.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: `{name}` is not there (hint: convert the model anew)", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: `{name}` is {found:?}, expected {expected:?} (hint: convert the model anew)", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<u64> },
    #[error("{}: `{name}` holds {dtype} elements, which cannot be trained", path.display())]
    Type { path: PathBuf, name: String, dtype: String },
}

/// Where a weight lies in the file.
struct Place {
    begin: usize,
    end: usize,
    dtype: DType,
}

/// An open weight file.
pub struct Weights {
    path: PathBuf,
    map: Mmap,
    places: BTreeMap<String, Place>,
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
        let path = bundle.join(files::WEIGHTS);
        let io = |source| WeightsError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        // SAFETY: a map of a file that another process shortens faults; weight files are replaced, never edited.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let format = |e: safetensors::SafeTensorError| WeightsError::Format {
            path: path.clone(),
            reason: e.to_string(),
        };
        let tensors = SafeTensors::deserialize(&map).map_err(format)?;
        let base = map.as_ptr() as usize;
        let mut places = BTreeMap::new();
        let added = |name: &str| additions.iter().any(|a| a.down.0 == name || a.up.0 == name);
        let own = trained.parameters().filter(|p| !added(&p.name)).cloned();
        for parameter in own.chain(additions.iter().map(Addition::weight)) {
            let name = parameter.name.clone();
            let missing = |_| WeightsError::Missing { path: path.clone(), name: name.clone() };
            let view = tensors.tensor(&parameter.name).map_err(missing)?;
            if !view.shape().iter().map(|d| *d as u64).eq(parameter.dims.iter().copied()) {
                let (found, expected) = (view.shape().to_vec(), parameter.dims.clone());
                return Err(WeightsError::Shape { path: path.clone(), name, found, expected });
            }
            let Some(dtype) = float(view.dtype()) else {
                return Err(WeightsError::Type {
                    path: path.clone(),
                    name,
                    dtype: format!("{:?}", view.dtype()),
                });
            };
            let begin = view.data().as_ptr() as usize - base;
            places.insert(name, Place { begin, end: begin + view.data().len(), dtype });
        }
        drop(tensors);
        Ok(Self { path, map, places, additions })
    }

    /// The flat vector of a group.
    pub fn flat(&self, group: &Group) -> Vec<f32> {
        let mut flat = vec![0.0; group.len()];
        for (at, parameter) in group.offsets() {
            let part = &mut flat[at..at + parameter.len()];
            let numbers = self.numbers(&parameter.name, &parameter.dims);
            part.iter_mut().zip(numbers).for_each(|(to, from)| *to = from);
        }
        flat
    }

    /// The numbers of a weight in the file, or those that an addition begins with.
    fn numbers(&self, name: &str, dims: &[u64]) -> Vec<f32> {
        let in_file = self.places.get(name).and_then(|place| {
            let bytes = self.map[place.begin..place.end].to_vec();
            // The length was checked when the file was opened.
            Tensor::from_bytes(place.dtype, dims.to_vec(), bytes).ok()
        });
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
        let mut bytes = self.map.to_vec();
        let mut put = |name: &str, dims: &[u64], numbers: &[f32]| {
            let place = &self.places[name];
            let tensor = Tensor::from_f32(dims, numbers).cast(place.dtype);
            bytes[place.begin..place.end].copy_from_slice(&tensor.bytes());
        };
        let mut trained: BTreeMap<&str, &[f32]> = BTreeMap::new();
        for (group, flat) in groups {
            for (at, parameter) in group.offsets() {
                let numbers = &flat[at..at + parameter.len()];
                trained.insert(&parameter.name, numbers);
                if self.places.contains_key(&parameter.name) {
                    put(&parameter.name, &parameter.dims, numbers);
                }
            }
        }
        for addition in &self.additions {
            let [Some(down), Some(up)] = [&addition.down, &addition.up].map(|(name, _)| trained.get(&**name))
            else {
                continue;
            };
            let Parameter { name, dims } = addition.weight();
            let own = self.numbers(&name, &dims);
            let sum: Vec<f32> = own.iter().zip(addition.product(down, up)).map(|(w, p)| w + p).collect();
            put(&name, &dims, &sum);
        }
        replace_file(&self.path, &bytes).map_err(io)
    }
}

impl Weights {
    /// Replaces the file by one with new numbers for some of the trained weights, whole or not at all.
    pub fn replace_some<'a>(
        &self,
        values: impl Iterator<Item = (&'a String, &'a Tensor)>,
    ) -> Result<(), WeightsError> {
        let mut bytes = self.map.to_vec();
        for (name, tensor) in values {
            let missing = || WeightsError::Missing { path: self.path.clone(), name: name.clone() };
            let place = self.places.get(name).ok_or_else(missing)?;
            bytes[place.begin..place.end].copy_from_slice(&tensor.cast(place.dtype).bytes());
        }
        replace_file(&self.path, &bytes)
            .map_err(|source| WeightsError::Io { path: self.path.clone(), source })
    }
}

fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
