//! The weights of a bundle, one after the other, so that no more than one is in host memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::RuntimeError;
use crate::session::{DimSpec, Io};
use crate::tensor::{HostTensor, byte_len};

const NAME: &str = "model.safetensors";
/// What the names of files begin with that are the source's, in a bundle that links to them.
const LINKED: &str = "source-";

/// Hands over the tensors that are declared, in their order; the bundle must have them in that type and shape.
pub(crate) fn read(
    bundle: &Path,
    declared: &[Io],
    take: &mut dyn FnMut(&str, &HostTensor) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let paths = paths(bundle)?;
    let mut files = paths.iter().map(|path| WeightFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    for io_declared in declared {
        let name = &io_declared.name;
        let missing = || failed(&bundle.join(NAME), format!("it has no tensor `{name}`"));
        let file = files.iter_mut().find(|f| f.header.info(name).is_some()).ok_or_else(missing)?;
        take(name, &file.tensor(io_declared)?)?;
    }
    Ok(())
}

/// The bundle's own file, then those that it links to, in the order of their names.
fn paths(bundle: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let io = |error: std::io::Error| failed(bundle, error.to_string());
    let mut linked = Vec::new();
    for entry in std::fs::read_dir(bundle).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(LINKED) && n.ends_with(".safetensors")) {
            linked.push(bundle.join(name));
        }
    }
    linked.sort();
    Ok(std::iter::once(bundle.join(NAME)).chain(linked).collect())
}

fn failed(path: &Path, reason: String) -> RuntimeError {
    RuntimeError::Bundle { path: path.to_path_buf(), reason }
}

struct WeightFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the elements begin.
    start: u64,
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, RuntimeError> {
        let io = |error: std::io::Error| failed(path, error.to_string());
        let mut file = File::open(path).map_err(io)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let header_length = u64::from_le_bytes(length);
        let whole = file.metadata().map_err(io)?.len();
        if header_length > whole {
            return Err(failed(path, format!("its header is {header_length} bytes, the file {whole}")));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header = serde_json::from_slice(&header).map_err(|e| failed(path, e.to_string()))?;
        Ok(Self { path: path.to_owned(), file, header, start: 8 + header_length })
    }

    fn tensor(&mut self, declared: &Io) -> Result<HostTensor, RuntimeError> {
        let path = &self.path;
        let name = &declared.name;
        let missing = || failed(path, format!("it has no tensor `{name}`"));
        let info: &TensorInfo = self.header.info(name).ok_or_else(missing)?;
        let fixed = declared.shape.iter().map(|dim| match dim {
            DimSpec::Fixed(size) => Some(*size),
            DimSpec::Dynamic(_) => None,
        });
        let shape: Option<Vec<usize>> = fixed.collect();
        let shape = shape.filter(|shape| *shape == info.shape).ok_or_else(|| {
            failed(path, format!("`{name}` is {:?}, the graph takes {}", info.shape, declared.shape_text()))
        })?;
        let (begin, end) = info.data_offsets;
        if byte_len(declared.dtype, &shape)? != end - begin {
            return Err(failed(path, format!("`{name}` is not {} there", declared.dtype)));
        }
        let io = |error: std::io::Error| failed(path, error.to_string());
        let mut bytes = vec![0; end - begin];
        self.file.seek(SeekFrom::Start(self.start + begin as u64)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        Ok(HostTensor::new(declared.dtype, shape, bytes)?)
    }
}
