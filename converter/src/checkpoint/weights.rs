//! The weight files of a checkpoint: found, opened, and described tensor by tensor.
//! Nothing of a tensor is read here but its header entry.

use super::error::{CheckpointError, SHOWN};
use super::extra::is_buffer;
use super::gguf;
use crate::bundle::link::MappedFile;
use crate::bundle::stored_file::StoredFile;
use crate::onnx::external::location_problem;
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_format::weight_header::{LENGTH_BYTES, MOST_HEADER};
use dijiang_passes::ir::tensor::{SharedBytes, Tensor, TensorSizeError};
use memmap2::MmapOptions;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a header that are read, at most: one more than is taken, so that a longer one is refused as such.
const MOST_READ: u64 = MOST_HEADER + 1;

/// The tensors of a checkpoint by name, as views of its files.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The directory the files are in.
    pub(crate) dir: PathBuf,
    pub(super) files: Vec<PathBuf>,
    /// The files, in the same order.
    pub(super) maps: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
    blank: Option<Blank>,
    /// What a GGUF file calls them.
    pub(super) gguf: Option<gguf::Names>,
}

/// Tensors of any name and shape, all zeros that are never read.
#[derive(Clone)]
struct Blank {
    zeros: SharedBytes,
    dtype: DType,
}

impl fmt::Debug for Blank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blank({})", self.dtype)
    }
}

/// The largest tensor there can be where none was stored. Memory of that size is reserved, not used.
const BLANK_BYTES: usize = 1 << 36;

/// A tensor in its file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Index into [`Weights::files`].
    pub(super) file: usize,
    /// The name of the element type where it is one that cannot be read, such as `F8_E4M3`.
    pub(crate) tensor: Result<Tensor, String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Named<String>,
}

/// What an object has under its names, each of which must be there once: of two, either could be meant.
struct Named<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Named<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OnlyOnce(PhantomData))
    }
}

struct OnlyOnce<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for OnlyOnce<V> {
    type Value = Named<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<V>, A::Error> {
        let mut found = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, V>()? {
            match found.entry(name) {
                Entry::Vacant(place) => _ = place.insert(value),
                Entry::Occupied(place) => {
                    return Err(A::Error::custom(format!("`{}` is there twice", shown(place.key()))));
                }
            }
        }
        Ok(Named(found))
    }
}

/// Where the weights of a directory are.
enum Stores {
    Single(PathBuf),
    /// In what this index names.
    Shards(PathBuf),
}

impl Stores {
    fn of(dir: &Path) -> Result<Self, CheckpointError> {
        let [single, index] = [SINGLE, INDEX].map(|name| dir.join(name));
        match (single.is_file(), index.is_file()) {
            (true, _) => Ok(Self::Single(single)),
            (false, true) => Ok(Self::Shards(index)),
            (false, false) => Err(CheckpointError::NoWeights { dir: dir.to_owned(), hint: hint(dir) }),
        }
    }
}

/// The weight files of a directory, with their index. No header is read.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    match Stores::of(dir)? {
        Stores::Single(file) => Ok(vec![file]),
        Stores::Shards(index) => {
            let shards = shards(&index)?;
            let shards =
                shards.iter().map(|(shard, tensors)| shard_file(dir, &index, (shard, tensors.len())));
            let shards = shards.collect::<Result<Vec<_>, _>>()?;
            Ok(std::iter::once(index).chain(shards).collect())
        }
    }
}

/// The tensors that an index names, by shards.
fn shards(index: &Path) -> Result<BTreeMap<String, Vec<String>>, CheckpointError> {
    let text =
        std::fs::read(index).map_err(|source| CheckpointError::Io { path: index.to_owned(), source })?;
    let Index { weight_map } = serde_json::from_slice(&text)
        .map_err(|source| CheckpointError::Json { path: index.to_owned(), source })?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map.0 {
        shards.entry(shard).or_default().push(tensor);
    }
    Ok(shards)
}

/// The weight files that an index names, none of which need be there.
pub(crate) fn shard_names(index: &Path) -> Result<Vec<String>, CheckpointError> {
    let named = |shard: String| match location_problem(&shard) {
        Some(problem) => Err(CheckpointError::ShardName { index: index.to_owned(), shard, problem }),
        None => Ok(shard),
    };
    shards(index)?.into_keys().map(named).collect()
}

/// The file of a shard with so many tensors.
fn shard_file(dir: &Path, index: &Path, (shard, tensors): (&str, usize)) -> Result<PathBuf, CheckpointError> {
    let (index, path) = (index.to_owned(), dir.join(shard));
    let shard = shard.to_owned();
    match location_problem(&shard) {
        Some(problem) => Err(CheckpointError::ShardName { index, shard, problem }),
        None if !path.is_file() => Err(CheckpointError::MissingShard { index, shard, tensors }),
        None => Ok(path),
    }
}

impl Weights {
    /// Opens `model.safetensors`, or every shard that `model.safetensors.index.json` names.
    pub(super) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let mut weights = Self::none(dir);
        match Stores::of(dir)? {
            Stores::Single(file) => weights.tensors = weights.map(&file)?,
            Stores::Shards(index) => weights.open_shards(&index)?,
        }
        Ok(weights)
    }

    /// The same of a directory; or opens one file, whatever it is called, or the shards that an index names.
    pub(crate) fn read(path: &Path) -> Result<Self, CheckpointError> {
        if path.is_dir() {
            return Self::open(path);
        }
        let mut weights = Self::none(path.parent().unwrap_or(Path::new("")));
        if path.extension().is_some_and(|e| e == "json") {
            weights.open_shards(path)?;
        } else {
            weights.tensors = weights.map(path)?;
        }
        Ok(weights)
    }

    fn none(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            files: Vec::new(),
            maps: Vec::new(),
            tensors: BTreeMap::new(),
            blank: None,
            gguf: None,
        }
    }

    /// Those of a GGUF file, as the families call them. They stay where they are in no bundle: most are not stored as a
    /// graph reads them.
    pub(super) fn of_gguf(path: &Path, tensors: BTreeMap<String, Tensor>, names: gguf::Names) -> Self {
        let stored = |(name, tensor)| (name, Stored { file: 0, tensor: Ok(tensor) });
        Self {
            files: vec![path.to_owned()],
            tensors: tensors.into_iter().map(stored).collect(),
            gguf: Some(names),
            ..Self::none(path.parent().unwrap_or(Path::new("")))
        }
    }

    /// Holds whatever is asked for; `place` is what errors name.
    pub(super) fn blank(place: &Path, dtype: DType) -> Result<Self, CheckpointError> {
        let zeros = MmapOptions::new().len(BLANK_BYTES).no_reserve_swap().map_anon();
        let zeros = zeros.map_err(|source| CheckpointError::Io { path: place.to_owned(), source })?;
        Ok(Self { blank: Some(Blank { zeros: Arc::new(zeros), dtype }), ..Self::none(place) })
    }

    /// Where any tensor can be had, one of this shape.
    pub(super) fn made(&self, dims: &[u64]) -> Option<Result<Tensor, TensorSizeError>> {
        let Blank { zeros, dtype } = self.blank.as_ref()?;
        let count = dims.iter().try_fold(dtype.size() as u64, |n, dim| n.checked_mul(*dim));
        let bytes = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        Some(Tensor::view(*dtype, dims.to_vec(), zeros.clone(), 0, bytes))
    }

    fn open_shards(&mut self, index: &Path) -> Result<(), CheckpointError> {
        shards(index)?.into_iter().try_for_each(|shard| self.open_shard(index, shard))
    }

    /// Opens a shard, which must hold the tensors that the index names, and no other.
    fn open_shard(
        &mut self,
        index: &Path,
        (shard, tensors): (String, Vec<String>),
    ) -> Result<(), CheckpointError> {
        let path = shard_file(&self.dir, index, (&shard, tensors.len()))?;
        let index = index.to_owned();
        let mut found = self.map(&path)?;
        for tensor in tensors {
            let Some(stored) = found.remove(&tensor) else {
                return Err(CheckpointError::NotInShard { index, shard, tensor });
            };
            self.tensors.insert(tensor, stored);
        }
        found.retain(|name, stored| !is_buffer(name, stored));
        if found.is_empty() {
            return Ok(());
        }
        let (count, names) = (found.len(), found.into_keys().take(SHOWN).collect());
        Err(CheckpointError::NotInIndex { index, shard, names, count })
    }

    fn map(&mut self, path: &Path) -> Result<BTreeMap<String, Stored>, CheckpointError> {
        let fail = |source| CheckpointError::Io { path: path.to_owned(), source };
        let owner: SharedBytes = Arc::new(StoredFile::open(path).map_err(fail)?);
        let file = self.files.len();
        self.files.push(path.to_owned());
        self.maps.push(MappedFile { path: path.to_owned(), bytes: owner.clone() });
        let stored = |(name, tensor)| (name, Stored { file, tensor });
        Ok(read_header(&owner, path)?.into_iter().map(stored).collect())
    }

    pub(crate) fn get_key(&self, name: &str) -> Option<(&str, &Stored)> {
        self.tensors.get_key_value(name).map(|(name, stored)| (name.as_str(), stored))
    }

    /// The file a tensor is in.
    pub(crate) fn file_of(&self, stored: &Stored) -> &Path {
        &self.files[stored.file]
    }

    /// What to name where something is not there: the file, or the directory of several.
    pub(crate) fn place(&self) -> &Path {
        match self.files.as_slice() {
            [only] => only,
            _ => &self.dir,
        }
    }

    /// What to name where a weight is not there.
    pub(super) fn whole(&self) -> &Path {
        if self.gguf.is_some() { self.place() } else { &self.dir }
    }

    /// What the files call a tensor.
    pub(super) fn name_in_file(&self, name: &str) -> String {
        let own = self.gguf.and_then(|names| names.of(name));
        own.unwrap_or_else(|| name.to_owned())
    }

    /// Every tensor, in the order of their names.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    /// The tensors that can be read, in the order of their names.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().filter_map(|(name, stored)| Some((name.as_str(), stored.tensor.as_ref().ok()?)))
    }

    /// The float type that most bytes are stored in.
    pub(super) fn main_dtype(&self) -> Option<DType> {
        let mut bytes: BTreeMap<DType, usize> = BTreeMap::new();
        for (_, tensor) in self.tensors().filter(|(_, t)| t.dtype().is_float()) {
            *bytes.entry(tensor.dtype()).or_default() += tensor.byte_len();
        }
        bytes.into_iter().max_by_key(|(_, n)| *n).map(|(dtype, _)| dtype)
    }
}

/// The tensors of a safetensors file by name, as views of its bytes; `path` is what errors name. Of an
/// element type that cannot be read there is only the name.
pub fn read_header(
    bytes: &SharedBytes,
    path: &Path,
) -> Result<BTreeMap<String, Result<Tensor, String>>, CheckpointError> {
    let size = bytes.size();
    let mut length = [0; LENGTH_BYTES];
    bytes.read(0, &mut length[..size.min(LENGTH_BYTES)]);
    let length = u64::from_le_bytes(length).min(MOST_READ) as usize;
    let mut head = vec![0; size.min(LENGTH_BYTES + length)];
    bytes.read(0, &mut head);
    if let Some(problem) = bytes.problem() {
        return Err(problem.into());
    }
    let metadata = metadata(&head, size).map_err(|e| broken(path, &head, size, &e))?;
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let dims = info.shape.iter().map(|d| *d as u64).collect();
        let (begin, end) = info.data_offsets;
        let offset = head.len() + begin;
        let tensor = match element_type(info.dtype) {
            None => Err(info.dtype.to_string()),
            Some(dtype) => Ok(Tensor::view(dtype, dims, bytes.clone(), offset, end - begin)
                .map_err(|e| CheckpointError::Header { path: path.to_owned(), reason: e.to_string() })?),
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// What the head of a file of so many bytes describes.
fn metadata(head: &[u8], size: usize) -> Result<Metadata, SafeTensorError> {
    match SafeTensors::read_metadata(head) {
        // It is as it should be, but for the elements after it.
        Err(SafeTensorError::MetadataIncompleteBuffer) | Ok(_) => {}
        Err(error) => return Err(error),
    }
    let header = &head[LENGTH_BYTES..];
    let parsed =
        serde_json::from_slice::<Named<IgnoredAny>>(header).and_then(|_| serde_json::from_slice(header));
    let metadata: Metadata = parsed.map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    match head.len().checked_add(metadata.data_len()) == Some(size) {
        true => Ok(metadata),
        false => Err(SafeTensorError::MetadataIncompleteBuffer),
    }
}

/// What to do about a directory without safetensors.
fn hint(dir: &Path) -> String {
    if let Some(name) = [SINGLE, INDEX].iter().find(|name| dir.join(name).is_symlink()) {
        return format!(" ({name} is a link to a file that is not there; finish the download)");
    }
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let found =
        OTHERS.iter().find_map(|other| Some((names.iter().find(|name| (other.is)(name))?, other.what)));
    found.map_or(String::new(), |(name, what)| format!(" (found {}, which is not read; {what})", shown(name)))
}

/// Files in which weights come too.
struct Other {
    is: fn(&str) -> bool,
    what: &'static str,
}

const RESAVE: &str = "convert it to safetensors: load it with transformers and call `save_pretrained`";

const OTHERS: &[Other] = &[
    Other {
        is: |name| name.starts_with("adapter_model."),
        what: "it is an adapter of another model: merge the two with peft, `merge_and_unload()`, and call `save_pretrained`",
    },
    Other { is: |name| name.starts_with("pytorch_model") && name.contains(".bin"), what: RESAVE },
    Other { is: |name| ends(name, &[".bin", ".h5", ".msgpack", ".pt", ".pth"]), what: RESAVE },
    Other { is: |name| ends(name, &[".gguf"]), what: "a GGUF file is named itself and not by its directory" },
    Other {
        is: |name| ends(name, &[".safetensors"]),
        what: "name the file model.safetensors, or write the index of several",
    },
];

fn ends(name: &str, suffixes: &[&str]) -> bool {
    suffixes.iter().any(|suffix| name.ends_with(suffix))
}

/// What a file begins with that stands for another in a repository without it.
const POINTER: &[u8] = b"version https://git-lfs";

fn broken(path: &Path, head: &[u8], size: usize, error: &SafeTensorError) -> CheckpointError {
    if head.starts_with(POINTER) {
        return CheckpointError::Pointer { path: path.to_owned() };
    }
    if matches!(error, SafeTensorError::MetadataIncompleteBuffer)
        && let Some(expected) = described_len(head)
    {
        return CheckpointError::WrongLength { path: path.to_owned(), found: size as u64, expected };
    }
    let reason = match error {
        SafeTensorError::HeaderTooSmall => format!("{size} bytes hold no header length"),
        SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooLarge => {
            let n = header_len(head).unwrap_or_default();
            format!("its length is given as {n} bytes in a file of {size}")
        }
        other => other.to_string(),
    };
    CheckpointError::Header { path: path.to_owned(), reason }
}

fn header_len(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.first_chunk::<LENGTH_BYTES>()?))
}

/// How long the file should be by its header.
fn described_len(head: &[u8]) -> Option<u64> {
    let metadata: Metadata = serde_json::from_slice(head.get(LENGTH_BYTES..)?).ok()?;
    Some((head.len() + metadata.data_len()) as u64)
}

fn element_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        Dtype::I16 => DType::I16,
        Dtype::U16 => DType::U16,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::I64,
        Dtype::U64 => DType::U64,
        _ => return None,
    })
}
