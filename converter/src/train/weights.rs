//! The trained weights of a bundle: read from its weight file as f32, and written back in the element types
//! they are stored in. Nothing moves in the file, so the graphs that point into it stay as they are.

use crate::bundle::finite::NotFinite;
use crate::bundle::replace::{NewFile, replace_file};
use crate::bundle::stored_file::StoredFile;
use crate::checkpoint::digests::of_file;
use crate::checkpoint::{self, CheckpointError};
use dijiang_format::digest::{WeightDigests, digest};
use dijiang_format::files;
use dijiang_passes::ir::tensor::{ReadError, SharedBytes, Storage as _, Tensor};
use dijiang_passes::training::lora::Addition;
use dijiang_passes::training::parameters::{Group, Parameter, ParameterLayout};
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
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
    Header(#[from] Box<CheckpointError>),
    #[error("{}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: `{name}` is not there (hint: convert the model anew)", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: `{name}` is {found:?}, expected {expected:?} (hint: convert the model anew)", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("{}: `{name}` holds {dtype} elements, which cannot be trained", path.display())]
    Type { path: PathBuf, name: String, dtype: String },
    #[error(
        "{}: it is not what was read when the run began: the bundle was changed meanwhile, so nothing was written (hint: train it again; `train/checkpoint.safetensors` is of the bundle as it was)",
        path.display()
    )]
    Changed { path: PathBuf },
    #[error(
        "`{name}` holds {found:e}, and {before:e} was its largest number before the run, so nothing was written (hint: a lower --lr)"
    )]
    Grown { name: String, found: f32, before: f32 },
    #[error("`{name}` holds {what}, so nothing was written (hint: a lower --lr)")]
    NotFinite { name: String, what: String },
}

/// How often the largest number of a weight, or 1, a run may come to: one that learns moves a number by the sum of its
/// learning rates, which is about 1.
const GROWTH: f32 = 1e4;

/// What tells a file from another that takes its place, and from itself once it is edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        let changed = (file.mtime(), file.mtime_nsec());
        Self { device: file.dev(), inode: file.ino(), length: file.len(), changed }
    }
}

/// An open weight file.
pub struct Weights {
    path: PathBuf,
    file: Arc<StoredFile>,
    stamp: Stamp,
    /// The text of the manifest beside it.
    manifest: Vec<u8>,
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
    pub fn open(bundle: &Path, trained: &ParameterLayout) -> Result<Self, WeightsError> {
        Self::with_additions(bundle, trained, Vec::new())
    }

    /// The same where some of what is trained is not in the file, but is added to weights that are.
    pub fn with_additions(
        bundle: &Path,
        trained: &ParameterLayout,
        additions: Vec<Addition>,
    ) -> Result<Self, WeightsError> {
        let path = bundle.join(files::WEIGHTS);
        let io = |source| WeightsError::Io { path: path.clone(), source };
        let file = Arc::new(StoredFile::open(&path).map_err(io)?);
        let stamp = Stamp::of(&file.metadata().map_err(io)?);
        let manifest = read_manifest(&path)?;
        let bytes: SharedBytes = file.clone();
        let all = checkpoint::read_header(&bytes, &path).map_err(Box::new)?;
        let mut stored = BTreeMap::new();
        let added = |name: &str| additions.iter().any(|a| a.down.0 == name || a.up.0 == name);
        let own = trained.inputs().flat_map(|group| &group.parameters);
        let own = own.filter(|p| !added(&p.name)).cloned();
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
        Ok(Self { path, file, stamp, manifest, stored, additions })
    }

    /// The flat vector of a group.
    pub fn flat(&self, group: &Group) -> Result<Vec<f32>, WeightsError> {
        let mut flat = vec![0.0; group.len()];
        for (at, parameter) in group.offsets() {
            let part = &mut flat[at..at + parameter.len()];
            let numbers = self.numbers(&parameter.name);
            part.iter_mut().zip(numbers).for_each(|(to, from)| *to = from);
        }
        self.check_read()?;
        Ok(flat)
    }

    /// Whether all that was read of the file was there.
    fn check_read(&self) -> Result<(), ReadError> {
        self.file.problem().map_or(Ok(()), Err)
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

    /// The flat vector of a group with other numbers for some of its parameters, as they are once they are stored.
    pub fn flat_with(
        &self,
        group: &Group,
        values: &BTreeMap<String, Tensor>,
    ) -> Result<Vec<f32>, WeightsError> {
        let mut flat = self.flat(group)?;
        for (at, parameter) in group.offsets() {
            let own = self.stored.get(&parameter.name);
            let Some((own, tensor)) = own.zip(values.get(&parameter.name)) else { continue };
            let stored = tensor.cast(own.dtype()).to_f64();
            flat[at..].iter_mut().zip(stored).for_each(|(to, from)| *to = from as f32);
        }
        Ok(flat)
    }

    /// The file with new numbers for the trained weights. Refuses numbers that are not finite in the type they are
    /// stored in.
    pub fn with(&self, groups: &[(&Group, &[f32])]) -> Result<NewWeights, WeightsError> {
        let mut bytes = vec![0; self.file.size()];
        self.file.read(0, &mut bytes);
        let mut new = NewWeights { bytes, digests: BTreeMap::new() };
        let mut trained: BTreeMap<&str, &[f32]> = BTreeMap::new();
        for (group, flat) in groups {
            for (at, parameter) in group.offsets() {
                let numbers = &flat[at..at + parameter.len()];
                trained.insert(&parameter.name, numbers);
                if let Some(stored) = self.stored.get(&parameter.name) {
                    self.check_growth(parameter, numbers)?;
                    new.put(&parameter.name, stored, &Tensor::from_f32(&parameter.dims, numbers))?;
                }
            }
        }
        for addition in &self.additions {
            let [Some(down), Some(up)] = [&addition.down, &addition.up].map(|(name, _)| trained.get(&**name))
            else {
                continue;
            };
            let weight = addition.weight();
            let own = self.numbers(&weight.name);
            let sum: Vec<f32> = own.iter().zip(addition.product(down, up)).map(|(w, p)| w + p).collect();
            self.check_growth(&weight, &sum)?;
            new.put(&weight.name, &self.stored[&weight.name], &Tensor::from_f32(&weight.dims, &sum))?;
        }
        self.check_read()?;
        Ok(new)
    }

    /// Refuses a weight that left all that it was, though it is finite: one form of the model may give numbers with it,
    /// and another none.
    fn check_growth(&self, parameter: &Parameter, numbers: &[f32]) -> Result<(), WeightsError> {
        let largest = |numbers: &[f32]| numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let found = largest(numbers);
        let before = largest(&self.numbers(&parameter.name));
        match found.is_infinite() || found <= GROWTH * before.max(1.0) {
            true => Ok(()),
            false => Err(WeightsError::Grown { name: parameter.name.clone(), found, before }),
        }
    }

    /// Refuses where another command, or a hand, changed the bundle since these weights were opened.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        match self.is_as_opened() && read_manifest(&self.path)? == self.manifest {
            true => Ok(()),
            false => Err(WeightsError::Changed { path: self.path.clone() }),
        }
    }

    /// Writes the new file beside this one.
    pub fn write_beside(&self, new: &NewWeights) -> Result<NewFile, WeightsError> {
        NewFile::write(&self.path, &new.bytes)
            .map_err(|source| WeightsError::Io { path: self.path.clone(), source })
    }

    /// Puts the manifest back as it was, where the weights are still those that it is of.
    pub fn restore_manifest(&self) -> std::io::Result<()> {
        match self.is_as_opened() {
            true => replace_file(&self.path.with_file_name(files::MANIFEST), &self.manifest),
            false => Ok(()),
        }
    }

    fn is_as_opened(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|file| Stamp::of(&file) == self.stamp)
    }

    /// The digests of the new file, where `before` are those of this one. What was not trained keeps the digest that it
    /// was written with, so that a byte that changed since is still found.
    pub fn digests(
        &self,
        new: NewWeights,
        before: Option<WeightDigests>,
    ) -> Result<WeightDigests, WeightsError> {
        match before {
            Some(mut digests) => {
                digests.tensors.extend(new.digests);
                Ok(digests)
            }
            None => of_file(&new.bytes)
                .map_err(|e| WeightsError::Format { path: self.path.clone(), reason: e.to_string() }),
        }
    }
}

/// A weight file that is about to be written.
pub struct NewWeights {
    bytes: Vec<u8>,
    /// Of the tensors that are new.
    digests: BTreeMap<String, String>,
}

impl std::fmt::Debug for NewWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewWeights({:?})", self.digests.keys())
    }
}

impl NewWeights {
    /// Of the tensors that are new.
    pub fn names(&self) -> Vec<String> {
        self.digests.keys().cloned().collect()
    }

    fn put(&mut self, name: &str, stored: &Tensor, numbers: &Tensor) -> Result<(), WeightsError> {
        let dtype = stored.dtype();
        let tensor = numbers.cast(dtype);
        let bytes = tensor.bytes();
        let count = |dtype, bytes: &[u8]| {
            let mut found = NotFinite::default();
            found.count(dtype, bytes);
            found
        };
        if !count(dtype, &bytes).is_none() {
            let what = match count(numbers.dtype(), &numbers.bytes()).is_none() {
                true => format!("a number too large for {dtype}, in which it is stored"),
                false => "NaN or infinity".to_owned(),
            };
            return Err(WeightsError::NotFinite { name: name.to_owned(), what });
        }
        // A trained weight was read from the file.
        let at = stored.place().map_or(0, |(_, at)| at);
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        self.digests.insert(name.to_owned(), digest(&bytes));
        Ok(())
    }
}

fn read_manifest(weights: &Path) -> Result<Vec<u8>, WeightsError> {
    let path = weights.with_file_name(files::MANIFEST);
    std::fs::read(&path).map_err(|source| WeightsError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::weights::WeightFile;
    use dijiang_format::dtype::DType;
    use dijiang_passes::training::parameters::Group;
    use std::fs::File;

    /// A weight file of one tensor, and the group that trains it.
    fn opened(dir: &Path, largest: f32, dtype: DType) -> (Weights, ParameterLayout) {
        let stored = Tensor::from_f32(&[2], &[1.0, largest]).cast(dtype);
        let file = WeightFile::plan([("w", &stored)].into_iter()).expect("a layout");
        let mut out = File::create(dir.join(files::WEIGHTS)).expect("a file");
        file.write(&mut out, &mut |_| ()).expect("it is written");
        std::fs::write(dir.join(files::MANIFEST), "{}").expect("it is written");
        let parameters = vec![Parameter { name: "w".to_owned(), dims: vec![2] }];
        let group = Group { name: "matrices", parameters, decays: true, is_new: false };
        let layout = ParameterLayout { groups: vec![group], drawn: None };
        (Weights::open(dir, &layout).expect("it fits"), layout)
    }

    #[test]
    fn what_is_not_finite_as_it_is_stored_is_not_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let written_over = |before: f32, dtype, numbers: [f32; 2]| {
            let (weights, layout) = opened(dir.path(), before, dtype);
            weights.with(&[(&layout.groups[0], &numbers)]).map(|_| ()).map_err(|e| e.to_string())
        };
        let written = |dtype, numbers| written_over(2.0, dtype, numbers);
        assert_eq!(written(DType::F32, [2e4, -2e4]), Ok(()));
        assert_eq!(
            written(DType::F32, [0.0, -1e30]),
            Err("`w` holds 1e30, and 2e0 was its largest number before the run, so nothing was written (hint: a lower --lr)"
                .to_owned())
        );
        assert_eq!(written(DType::F16, [20000.0, 0.0]), Ok(()));
        let refused =
            |what: &str| Err(format!("`w` holds {what}, so nothing was written (hint: a lower --lr)"));
        let too_large = |dtype| refused(&format!("a number too large for {dtype}, in which it is stored"));
        assert_eq!(written_over(50000.0, DType::F16, [0.0, 65520.0]), too_large("f16"));
        assert_eq!(written_over(50000.0, DType::F16, [0.0, 65504.0]), Ok(()));
        assert_eq!(written_over(f32::MAX / 2.0, DType::BF16, [f32::MAX, 0.0]), too_large("bf16"));
        for number in [f32::NAN, f32::INFINITY] {
            for dtype in [DType::F32, DType::F16, DType::F64] {
                assert_eq!(written(dtype, [0.0, number]), refused("NaN or infinity"));
            }
        }
    }

    #[test]
    fn what_was_changed_meanwhile_is_not_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let (weights, _) = opened(dir.path(), 2.0, DType::F32);
        weights.check_unchanged().expect("nothing was");
        std::fs::write(dir.path().join(files::MANIFEST), "{ }").expect("it is written");
        let error = weights.check_unchanged().expect_err("the manifest was").to_string();
        assert!(
            error.contains("the bundle was changed meanwhile, so nothing was written (hint: "),
            "{error}"
        );
        std::fs::write(dir.path().join(files::MANIFEST), "{}").expect("it is written");
        weights.check_unchanged().expect("it is as it was");
        // The same bytes, but another file.
        let path = dir.path().join(files::WEIGHTS);
        let bytes = std::fs::read(&path).expect("it is there");
        replace_file(&path, &bytes).expect("it is replaced");
        assert!(matches!(weights.check_unchanged(), Err(WeightsError::Changed { .. })));
    }

    #[test]
    fn what_is_not_trained_keeps_the_digest_it_was_written_with() {
        let dir = tempfile::tempdir().expect("a directory");
        let (weights, layout) = opened(dir.path(), 2.0, DType::F32);
        let new = || weights.with(&[(&layout.groups[0], &[3.0, 4.0])]).expect("numbers");
        let before = WeightDigests {
            header: "h".to_owned(),
            tensors: [("v", "old"), ("w", "old")].map(|(n, d)| (n.to_owned(), d.to_owned())).into(),
        };
        let after = weights.digests(new(), Some(before)).expect("digests");
        let expected = digest(&[3.0_f32, 4.0].map(f32::to_le_bytes).concat());
        assert_eq!((after.tensors["v"].as_str(), &after.tensors["w"]), ("old", &expected));
        // Where there were none, all are taken.
        let whole = weights.digests(new(), None).expect("digests");
        assert_eq!(whole.tensors, BTreeMap::from([("w".to_owned(), expected)]));
    }
}
