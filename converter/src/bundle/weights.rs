//! The weight file of a bundle: safetensors, laid out before anything is written, so that graphs can
//! point into it, and then streamed.
//!
//! Format: an 8-byte little-endian header length, a JSON header padded with spaces, the elements.
//! The elements start at a multiple of 64, and tensors lie in the order of element size (largest
//! first), then name, so that each one is aligned to its elements, as the `safetensors` crate does.

use super::link::{MappedFile, Place};
use crate::bundle::finite::NotFinite;
use dijiang_format::digest::{Hasher, WeightDigests, digest};
use dijiang_format::dtype::DType;
use dijiang_format::weight_header::LENGTH_BYTES;
use dijiang_passes::ir::tensor::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

/// Start of the elements is a multiple of this.
const ALIGNMENT: usize = 64;

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

/// What there is to say of a file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// A line for every tensor that holds numbers that are not finite, in file order.
    pub warnings: Vec<String>,
    pub digests: WeightDigests,
}

/// A weight file, laid out but not written.
#[derive(Debug)]
pub struct WeightFile {
    header: Vec<u8>,
    /// In file order.
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
    /// Weights that stay in the files of the source.
    elsewhere: BTreeMap<String, Place>,
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
        Ok(Self { header, entries, by_name, elsewhere: BTreeMap::new(), size: offset })
    }

    /// The same, but what lies in one of the files as it is stays there.
    pub fn plan_beside<'a>(
        tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
        files: &[MappedFile],
    ) -> Result<Self, LayoutError> {
        let mut own = Vec::new();
        let mut elsewhere = BTreeMap::new();
        for (name, tensor) in tensors {
            match files.iter().find_map(|file| file.place(tensor)) {
                Some(place) => drop(elsewhere.insert(name.to_owned(), place)),
                None => own.push((name, tensor)),
            }
        }
        Ok(Self { elsewhere, ..Self::plan(own.into_iter())? })
    }

    /// Where a weight lies that stays in a file of the source.
    pub fn elsewhere(&self, name: &str) -> Option<&Place> {
        self.elsewhere.get(name)
    }

    /// Whether a weight stays in the file of that name.
    pub fn reads(&self, location: &str) -> bool {
        self.elsewhere.values().any(|place| place.location == location)
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
    /// turn. Memory stays bounded whatever the size: elements go from file to file, and are converted where they must
    /// be, a block at a time. They are digested on the way, in as many threads as
    /// write, while the system brings to the disk what it was handed before.
    pub fn write(&self, out: &mut File, progress: &mut (dyn FnMut(u64) + Send)) -> std::io::Result<Written> {
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
        let written = self.entries.par_iter().map(|entry| entry.write(out, &report));
        let found: Vec<(NotFinite, String)> = written.collect::<std::io::Result<_>>()?;
        let found = || self.entries.iter().zip(&found);
        let line =
            |(entry, (found, _)): (&Entry, &(NotFinite, String))| found.line(&entry.name, entry.tensor.len());
        let tensors = found().map(|(entry, (_, digest))| (entry.name.clone(), digest.clone())).collect();
        Ok(Written {
            warnings: found().filter_map(line).collect(),
            digests: WeightDigests { header: digest(&head), tensors },
        })
    }
}

impl Entry {
    /// Returns what is not finite in the elements as they are written, and their digest.
    fn write(&self, out: &File, report: &dyn Fn(usize)) -> std::io::Result<(NotFinite, String)> {
        let mut at = self.offset;
        let (mut found, mut hasher) = (NotFinite::default(), Hasher::default());
        let mut put = |bytes: &[u8]| -> std::io::Result<()> {
            out.write_all_at(bytes, at)?;
            found.count(self.tensor.dtype(), bytes);
            hasher.update(bytes);
            at += bytes.len() as u64;
            report(bytes.len());
            Ok(())
        };
        self.tensor.for_each_block(&mut put)?;
        Ok((found, hasher.finish()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, SafeTensors};

    fn tensors() -> Vec<(String, Tensor)> {
        let values: Vec<f32> = (0..300_000).map(|i| i as f32 * 0.5).collect();
        let large = Tensor::from_f32(&[300, 1000], &values);
        vec![
            ("zeta.bias".to_owned(), Tensor::from_i64(&[2], &[-1, 7])),
            ("large".to_owned(), large.clone()),
            ("cast".to_owned(), large.cast(DType::F16)),
            ("a.scalar".to_owned(), Tensor::scalar(DType::F32, 3.0)),
            ("none".to_owned(), Tensor::from_f32(&[0, 4], &[])),
            ("flag".to_owned(), Tensor::scalar(DType::Bool, 1.0)),
        ]
    }

    fn plan(tensors: &[(String, Tensor)]) -> Result<WeightFile, LayoutError> {
        WeightFile::plan(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }

    fn written(file: &WeightFile) -> Vec<u8> {
        let mut temporary = tempfile::NamedTempFile::new().expect("a file");
        let mut total = 0;
        file.write(temporary.as_file_mut(), &mut |bytes| total += bytes).expect("it is written");
        assert_eq!(total, file.size());
        std::fs::read(temporary.path()).expect("it is there")
    }

    #[test]
    fn the_safetensors_crate_reads_it() {
        let (tensors, file) = (tensors(), plan(&tensors()).expect("a layout"));
        let bytes = written(&file);
        assert_eq!(bytes.len() as u64, file.size());
        let read = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
        assert_eq!(read.len(), tensors.len());
        for (name, tensor) in &tensors {
            let view = read.tensor(name).expect("it is there");
            let dims: Vec<u64> = view.shape().iter().map(|d| *d as u64).collect();
            assert_eq!((dims.as_slice(), view.data()), (tensor.dims(), tensor.bytes().as_ref()), "{name}");
            let (offset, length) = file.layout(name).expect("it is laid out");
            assert_eq!(&bytes[offset as usize..][..length as usize], view.data());
            assert_eq!(offset % tensor.dtype().size() as u64, 0);
        }
        assert_eq!(read.tensor("cast").map(|t| t.dtype()).ok(), Some(Dtype::F16));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("metadata");
        assert_eq!(
            metadata.metadata().as_ref().and_then(|m| m.get("format")).map(String::as_str),
            Some("pt")
        );
    }

    #[test]
    fn elements_start_aligned_and_in_one_order() {
        let mut tensors = tensors();
        let file = plan(&tensors).expect("a layout");
        assert_eq!(file.head().len() % ALIGNMENT, 0);
        let names: Vec<&str> = file.tensors().map(|(name, _)| name).collect();
        assert_eq!(names, ["zeta.bias", "a.scalar", "large", "none", "cast", "flag"]);
        tensors.reverse();
        assert_eq!(written(&file), written(&plan(&tensors).expect("a layout")));
    }

    #[test]
    fn names_must_be_new() {
        let mut tensors = tensors();
        tensors.push(("cast".to_owned(), Tensor::scalar(DType::F64, 0.0)));
        assert_eq!(plan(&tensors).expect_err("twice").to_string(), "two weights are called `cast`");
        let reserved = [(METADATA.to_owned(), Tensor::scalar(DType::F64, 0.0))];
        assert!(matches!(plan(&reserved), Err(LayoutError::Reserved(_))));
    }
}
