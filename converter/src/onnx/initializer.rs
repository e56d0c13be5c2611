//! Constant tensors in both directions: elements in the model file, or in another one beside it.

use super::dtype;
use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto};
use bytes::Bytes;
use dijiang_passes::ir::dtype::DType;
use dijiang_passes::ir::tensor::{SharedBytes, Tensor};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

fn described(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        dims: tensor.dims().iter().map(|d| *d as i64).collect(),
        data_type: dtype::to_number(tensor.dtype()),
        name: name.to_owned(),
        ..TensorProto::default()
    }
}

/// A tensor whose elements lie in the message.
pub(super) fn inline(name: &str, tensor: &Tensor) -> TensorProto {
    let raw_data = Some(Bytes::from(tensor.bytes().into_owned()));
    TensorProto { raw_data, ..described(name, tensor) }
}

/// A tensor whose elements lie at `offset` of the file `location`.
pub(super) fn external(name: &str, tensor: &Tensor, location: &str, offset: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
    let external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", tensor.byte_len().to_string()),
    ];
    TensorProto { external_data, data_location: EXTERNAL, ..described(name, tensor) }
}

/// Why a location is refused; `None` where it stays inside the model's directory.
pub(super) fn location_problem(location: &str) -> Option<&'static str> {
    let path = Path::new(location);
    if location.is_empty() {
        return Some("is empty");
    }
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    (!path.components().all(inside)).then_some("leaves the directory of the model file")
}

fn dims(proto: &TensorProto) -> Result<Vec<u64>, String> {
    let dim = |d: &i64| u64::try_from(*d).map_err(|_| format!("dims {:?} are negative", proto.dims));
    proto.dims.iter().map(dim).collect()
}

/// A tensor whose elements must lie in the message. Raw elements are shared, not copied.
pub(super) fn read_inline(proto: &TensorProto) -> Result<Tensor, String> {
    if proto.data_location == EXTERNAL {
        return Err("external data is not allowed here".to_owned());
    }
    let (dtype, dims) = (dtype::from_number(proto.data_type)?, dims(proto)?);
    let tensor = match &proto.raw_data {
        Some(raw) if !raw.is_empty() => Tensor::view(dtype, dims, Arc::new(raw.clone()), 0, raw.len()),
        _ => Tensor::from_bytes(dtype, dims, typed_elements(proto, dtype)),
    };
    tensor.map_err(|e| e.to_string())
}

/// The elements of the list that `onnx.proto` names for the element type.
fn typed_elements(proto: &TensorProto, dtype: DType) -> Vec<u8> {
    let ints = &proto.int32_data;
    match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U32 => proto.uint64_data.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
        DType::I32 => ints.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => {
            ints.iter().flat_map(|x| (*x as u16).to_le_bytes()).collect()
        }
        DType::I8 | DType::U8 | DType::Bool => ints.iter().map(|x| *x as u8).collect(),
    }
}

/// The files that external data lies in, each mapped once.
pub(super) struct ExternalFiles {
    directory: PathBuf,
    mapped: BTreeMap<String, Arc<Mmap>>,
}

impl ExternalFiles {
    pub(super) fn beside(model: &Path) -> Self {
        Self { directory: model.parent().unwrap_or(Path::new("")).to_owned(), mapped: BTreeMap::new() }
    }

    /// An initialiser, wherever its elements lie.
    pub(super) fn read(&mut self, proto: &TensorProto) -> Result<Tensor, String> {
        if proto.data_location != EXTERNAL {
            return read_inline(proto);
        }
        let (dtype, dims) = (dtype::from_number(proto.data_type)?, dims(proto)?);
        let location = entry(proto, "location").ok_or("its external data has no `location`")?;
        let file = self.open(location)?;
        let offset = number(proto, "offset")?.unwrap_or(0);
        let rest = file.len().checked_sub(offset).ok_or_else(|| {
            format!("offset {offset} lies past the end of `{location}` ({} bytes)", file.len())
        })?;
        let length = number(proto, "length")?.unwrap_or(rest);
        if length > rest {
            let size = file.len();
            return Err(format!(
                "{length} bytes at {offset} lie past the end of `{location}` ({size} bytes)"
            ));
        }
        Tensor::view(dtype, dims, file as SharedBytes, offset, length).map_err(|e| e.to_string())
    }

    fn open(&mut self, location: &str) -> Result<Arc<Mmap>, String> {
        if let Some(file) = self.mapped.get(location) {
            return Ok(file.clone());
        }
        if let Some(problem) = location_problem(location) {
            return Err(format!("the external data location `{location}` {problem}"));
        }
        let path = self.directory.join(location);
        let mapped = map(&path).map_err(|e| format!("external data `{location}`: {e}"))?;
        let mapped = Arc::new(mapped);
        self.mapped.insert(location.to_owned(), mapped.clone());
        Ok(mapped)
    }
}

fn entry<'p>(proto: &'p TensorProto, key: &str) -> Option<&'p str> {
    proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str())
}

fn number(proto: &TensorProto, key: &str) -> Result<Option<usize>, String> {
    let Some(text) = entry(proto, key) else { return Ok(None) };
    let bad = |_| format!("{key} `{text}` of its external data is not a number of bytes");
    text.parse().map(Some).map_err(bad)
}

/// A regular file, mapped for reading.
pub(super) fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    // SAFETY: the map is only read. As with every mapped file, another process that truncates it
    // while it is read ends this one.
    unsafe { Mmap::map(&file) }
}
