//! The weight file of a bundle: safetensors, laid out before anything is written, so that graphs can
//! point into it, and then streamed.
//!
//! Format: an 8-byte little-endian header length, a JSON header padded with spaces, the elements.
//! The elements start at a multiple of 64, and tensors lie in the order of element size (largest
//! first), then name, so that each one is aligned to its elements, as the `safetensors` crate does.

use dijiang_passes::ir::dtype::DType;
use dijiang_passes::ir::tensor::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

/// Start of the elements is a multiple of this.
const ALIGNMENT: usize = 64;

/// Bytes of the header's length, which come before the header.
const LENGTH_BYTES: usize = 8;

/// Most bytes handed to one write, so that progress moves.
const BLOCK: usize = 8 << 20;

/// The file could not be laid out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    #[error("two weights are called `{0}`")]
    Duplicate(String),
    #[error("a weight cannot be called `{0}`, which safetensors uses itself")]
    Reserved(String),
}

#[derive(Debug)]
struct Entry {
    name: String,
    tensor: Tensor,
    /// From the start of the file.
    offset: u64,
}

/// A weight file, laid out but not written.
#[derive(Debug)]
pub struct WeightFile {
    header: Vec<u8>,
    /// In file order.
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
    size: u64,
}

impl WeightFile {
    /// Lays out the tensors, given in any order. Nothing of them is read or copied.
    pub fn plan<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Self, LayoutError> {
        let mut sorted: Vec<(&str, &Tensor)> = tensors.collect();
        sorted.sort_by(|(a, x), (b, y)| y.dtype().size().cmp(&x.dtype().size()).then_with(|| a.cmp(b)));
        let by_name: BTreeMap<String, usize> =
            sorted.iter().enumerate().map(|(i, (name, _))| ((*name).to_owned(), i)).collect();
        if by_name.contains_key(METADATA) {
            return Err(LayoutError::Reserved(METADATA.to_owned()));
        }
        if let Some((name, _)) = sorted.iter().enumerate().find_map(|(i, e)| (by_name[e.0] != i).then_some(e))
        {
            return Err(LayoutError::Duplicate((*name).to_owned()));
        }
        let header = header(&sorted);
        let mut offset = (LENGTH_BYTES + header.len()) as u64;
        let entry = |(name, tensor): &(&str, &Tensor)| {
            let entry = Entry { name: (*name).to_owned(), tensor: (*tensor).clone(), offset };
            offset += tensor.byte_len() as u64;
            entry
        };
        let entries = sorted.iter().map(entry).collect();
        Ok(Self { header, entries, by_name, size: offset })
    }

    /// Where a tensor lies: bytes from the start of the file, and their number.
    pub fn layout(&self, name: &str) -> Option<(u64, u64)> {
        let entry = &self.entries[*self.by_name.get(name)?];
        Some((entry.offset, entry.tensor.byte_len() as u64))
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The names and tensors, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|e| (e.name.as_str(), &e.tensor))
    }

    /// Header length and header: all of the file that is not elements.
    pub fn head(&self) -> Vec<u8> {
        [&(self.header.len() as u64).to_le_bytes(), self.header.as_slice()].concat()
    }

    /// Writes the file; `progress` hears of every block of bytes written, from several threads in
    /// turn. Memory stays bounded whatever the size: elements go from their map to the file, and
    /// those that must be converted do so a block at a time.
    pub fn write(&self, out: &mut File, progress: &mut (dyn FnMut(u64) + Send)) -> std::io::Result<()> {
        let head = self.head();
        out.set_len(self.size)?;
        out.write_all(&head)?;
        progress(head.len() as u64);
        let (out, progress) = (&*out, Mutex::new(progress));
        let report = |bytes: usize| {
            if let Ok(mut progress) = progress.lock() {
                progress(bytes as u64);
            }
        };
        self.entries.par_iter().try_for_each(|entry| entry.write(out, &report))
    }
}

impl Entry {
    fn write(&self, out: &File, report: &dyn Fn(usize)) -> std::io::Result<()> {
        let mut at = self.offset;
        let mut put = |bytes: &[u8]| {
            out.write_all_at(bytes, at)?;
            at += bytes.len() as u64;
            report(bytes.len());
            Ok(())
        };
        if self.tensor.is_plain() {
            self.tensor.bytes().chunks(BLOCK).try_for_each(put)
        } else {
            self.tensor.for_each_block(&mut put)
        }
    }
}

const METADATA: &str = "__metadata__";

fn header(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    let mut map = serde_json::Map::new();
    map.insert(METADATA.to_owned(), serde_json::json!({"format": "pt"}));
    let mut begin = 0;
    for (name, tensor) in tensors {
        let end = begin + tensor.byte_len();
        let entry = serde_json::json!({
            "dtype": dtype_name(tensor.dtype()),
            "shape": tensor.dims(),
            "data_offsets": [begin, end],
        });
        map.insert((*name).to_owned(), entry);
        begin = end;
    }
    let mut header = serde_json::Value::Object(map).to_string().into_bytes();
    let padded = (LENGTH_BYTES + header.len()).next_multiple_of(ALIGNMENT);
    header.resize(padded - LENGTH_BYTES, b' ');
    header
}

/// The safetensors name of an element type.
fn dtype_name(dtype: DType) -> String {
    dtype.name().to_uppercase()
}
