//! What a GGUF file says of itself and of its tensors.

use super::cursor::Cursor;
use super::error::GgufError;
use super::kinds::{self, Kind};
use super::value::Value;
use crate::checkpoint::error::CheckpointError;
use crate::report::message::shown;
use dijiang_passes::ir::tensor::SharedBytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything of a file but its elements.
pub(super) struct Header {
    pub(super) path: PathBuf,
    pub(super) bytes: SharedBytes,
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Raw>,
}

/// A tensor where it lies.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) kind: &'static Kind,
    /// The longest stride first, as everywhere but in the file.
    pub(super) dims: Vec<u64>,
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// A tensor as the head names it.
struct Listed {
    name: String,
    at: u64,
    kind: u32,
    dims: Vec<u64>,
    offset: u64,
}

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// What a file begins with that stands for another in a repository without it.
const POINTER: &[u8] = b"version https://git-lfs";
const ALIGNMENT: &str = "general.alignment";
/// A name of no bytes, and a value of one.
const LEAST_VALUE: u64 = 8 + 4 + 1;
/// A name of no bytes, no dims, a type and an offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;
const MOST_DIMS: u32 = 4;
/// More than any model has.
const MOST_TENSORS: u64 = 1 << 17;
const MOST_VALUES: u64 = 1 << 16;

impl Header {
    pub(super) fn read(bytes: &SharedBytes, path: &Path) -> Result<Self, CheckpointError> {
        let cursor = &mut Cursor::new(bytes, path);
        check_magic(cursor)?;
        check_version(cursor)?;
        let tensors = cursor.count("the number of tensors", (LEAST_TENSOR, MOST_TENSORS))?;
        let values = cursor.count("the number of keys", (LEAST_VALUE, MOST_VALUES))?;
        let values = read_values(cursor, values)?;
        let listed = (0..tensors).map(|at| Listed::read(cursor, at)).collect::<Result<Vec<_>, _>>()?;
        let mut header =
            Self { path: path.to_owned(), bytes: bytes.clone(), values, tensors: BTreeMap::new() };
        let alignment = header.alignment()?;
        let start = cursor.at().next_multiple_of(alignment);
        for tensor in listed {
            let raw = tensor.placed(path, (start, alignment), bytes.size() as u64)?;
            if header.tensors.insert(tensor.name.clone(), raw).is_some() {
                return Err(
                    GgufError::Twice { path: path.to_owned(), what: "tensor", name: tensor.name }.into()
                );
            }
        }
        header.check_overlaps()?;
        Ok(header)
    }

    fn alignment(&self) -> Result<u64, CheckpointError> {
        match self.values.get(ALIGNMENT) {
            None => Ok(32),
            Some(Value::Int(n)) if (1..=1 << 20).contains(n) && n.count_ones() == 1 => Ok(*n as u64),
            Some(other) => Err(self.bad(ALIGNMENT, other, "a power of two")),
        }
    }

    /// Two tensors of the same bytes are one too many.
    fn check_overlaps(&self) -> Result<(), CheckpointError> {
        let mut places: Vec<(usize, usize, &str)> =
            self.tensors.iter().map(|(name, raw)| (raw.offset, raw.bytes, name.as_str())).collect();
        places.retain(|(_, bytes, _)| *bytes > 0);
        places.sort_unstable();
        let over = places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0);
        over.map_or(Ok(()), |pair| {
            let problem = format!("begins within `{}`", shown(pair[0].2));
            let (path, tensor) = (self.path.clone(), pair[1].2.to_owned());
            Err(GgufError::Tensor { path, tensor, problem }.into())
        })
    }

    pub(super) fn bad(&self, key: &str, found: &Value, expected: &str) -> CheckpointError {
        self.refused(key, found, expected, "the file is damaged or made by other code, fetch another")
    }

    pub(super) fn refused(
        &self,
        key: &str,
        found: &Value,
        expected: &str,
        hint: &'static str,
    ) -> CheckpointError {
        let found = crate::checkpoint::config::shortened(&found.json());
        let (key, expected) = (key.to_owned(), expected.to_owned());
        GgufError::BadKey { path: self.path.clone(), key, found, expected, hint }.into()
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, other, "a text")),
        }
    }

    /// A number, or a list that has the same for every layer.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        const LAYERS: &str = "the same number for every layer";
        const HINT: &str = "layers of different sizes are in no family here; convert another model";
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let found = match value {
            Value::Int(number) => Some(*number),
            Value::Ints(numbers) => match numbers.first() {
                Some(first) if numbers.iter().all(|n| n == first) => Some((*first).into()),
                _ => return Err(self.refused(key, value, LAYERS, HINT)),
            },
            _ => None,
        };
        let count = found.and_then(|n| u64::try_from(n).ok());
        count.map(Some).ok_or_else(|| self.bad(key, value, "a count"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(Value::Int(number)) => Ok(Some(*number as f64)),
            Some(other) => Err(self.bad(key, other, "a number")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.bad(key, other, "true or false")),
        }
    }
}

fn check_magic(cursor: &mut Cursor<'_>) -> Result<(), CheckpointError> {
    let path = cursor.path();
    let found = cursor.take(cursor.left().min(POINTER.len() as u64), "its first bytes")?;
    if found.starts_with(POINTER) {
        return Err(CheckpointError::Pointer { path });
    }
    if found.starts_with(MAGIC) {
        cursor.rewind(MAGIC.len() as u64);
        return Ok(());
    }
    let hint = match found.get(..4) {
        Some(b"lmgg" | b"fmgg" | b"tjgg" | b"algg") => {
            "it is of a format before GGUF; convert the model to GGUF with a newer llama.cpp"
        }
        _ => "the file is damaged or no GGUF file, fetch it again",
    };
    let found = match found.as_slice() {
        [] => "nothing".to_owned(),
        bytes => format!("`{}`", bytes[..bytes.len().min(4)].escape_ascii()),
    };
    Err(GgufError::Magic { path, found, hint }.into())
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), CheckpointError> {
    let path = cursor.path();
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        // The other end of such a file comes first.
        turned if turned != 0 && turned.trailing_zeros() >= 16 => Err(GgufError::BigEndian { path }.into()),
        found => Err(GgufError::Version { path, found }.into()),
    }
}

fn read_values(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>, CheckpointError> {
    let mut values = BTreeMap::new();
    for at in 0..count {
        let key = cursor.text(&format!("the name of key {at}"))?;
        let value = Value::read(cursor, &format!("key `{}`", shown(&key)))?;
        if values.contains_key(&key) {
            return Err(GgufError::Twice { path: cursor.path(), what: "key", name: key }.into());
        }
        values.insert(key, value);
    }
    Ok(values)
}

impl Listed {
    fn read(cursor: &mut Cursor<'_>, number: u64) -> Result<Self, CheckpointError> {
        let at = cursor.at();
        let name = cursor.text(&format!("the name of tensor {number}"))?;
        let what = format!("tensor `{}`", shown(&name));
        let rank = cursor.u32(&what)?;
        if rank > MOST_DIMS {
            let expected = format!("at most {MOST_DIMS}");
            return Err(cursor.broken(&format!("the rank of {what}"), &rank.to_string(), &expected));
        }
        let mut dims = (0..rank).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        dims.reverse();
        let (kind, offset) = (cursor.u32(&what)?, cursor.u64(&what)?);
        Ok(Self { name, at, kind, dims, offset })
    }

    /// Where it lies in a file of so many bytes, whose tensors begin at `start`.
    fn placed(&self, path: &Path, (start, alignment): (u64, u64), size: u64) -> Result<Raw, CheckpointError> {
        let fail = |problem: String| {
            CheckpointError::from(GgufError::Tensor {
                path: path.to_owned(),
                tensor: self.name.clone(),
                problem: format!("at byte {} {problem}", self.at),
            })
        };
        let kind = kinds::find(self.kind).ok_or_else(|| {
            let (path, tensor, found) = (path.to_owned(), self.name.clone(), format!("number {}", self.kind));
            CheckpointError::from(GgufError::TensorType { path, tensor, found, read: kinds::read() })
        })?;
        if self.dims.contains(&0) {
            return Err(fail(format!("has shape {:?}; expected some numbers", self.dims)));
        }
        let row = self.dims.last().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block as u64) {
            let block = kind.block;
            return Err(fail(format!(
                "has rows of {row}; expected a multiple of {block}, a block of {}",
                kind.name
            )));
        }
        let count = self.dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = count.and_then(|n| (n / kind.block as u64).checked_mul(kind.bytes as u64));
        let offset = start.checked_add(self.offset).filter(|_| self.offset.is_multiple_of(alignment));
        let end = offset.zip(bytes).and_then(|(offset, bytes)| offset.checked_add(bytes));
        match (offset, bytes, end.filter(|end| *end <= size)) {
            (Some(offset), Some(bytes), Some(_)) => {
                let (dims, offset, bytes) = (self.dims.clone(), offset as usize, bytes as usize);
                Ok(Raw { kind, dims, offset, bytes })
            }
            (None, ..) => {
                Err(fail(format!("has offset {}; expected a multiple of {alignment}", self.offset)))
            }
            (Some(offset), bytes, _) => {
                let bytes =
                    bytes.map_or("more bytes than can be counted".to_owned(), |n| format!("{n} bytes"));
                let dims = &self.dims;
                Err(fail(format!(
                    "has shape {dims:?} and takes {bytes} from byte {offset} on, but the file has {size}"
                )))
            }
        }
    }
}
