//! The weights of a bundle, one after the other, so that no more than one is in host memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::Metadata;

use crate::error::RuntimeError;
use crate::session::{DimSpec, Io};
use crate::tensor::{HostTensor, byte_len};

pub(crate) const NAME: &str = "model.safetensors";

/// Hands over the tensors that are declared, in their order; the file must have them in that type and shape.
pub(crate) fn read(
    path: &Path,
    declared: &[Io],
    take: &mut dyn FnMut(&str, &HostTensor) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let failed = |reason: String| RuntimeError::Bundle { path: path.to_path_buf(), reason };
    let io = |error: std::io::Error| failed(error.to_string());
    let mut file = File::open(path).map_err(io)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let header_length = u64::from_le_bytes(length);
    let whole = file.metadata().map_err(io)?.len();
    if header_length > whole {
        return Err(failed(format!("its header is {header_length} bytes, the file {whole}")));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| failed(e.to_string()))?;
    for io_declared in declared {
        let name = &io_declared.name;
        let info = header.info(name).ok_or_else(|| failed(format!("it has no tensor `{name}`")))?;
        let fixed = io_declared.shape.iter().map(|dim| match dim {
            DimSpec::Fixed(size) => Some(*size),
            DimSpec::Dynamic(_) => None,
        });
        let shape: Option<Vec<usize>> = fixed.collect();
        let shape = shape.filter(|shape| *shape == info.shape);
        let shape = shape.ok_or_else(|| {
            failed(format!("`{name}` is {:?}, the graph takes {}", info.shape, io_declared.shape_text()))
        })?;
        let (begin, end) = info.data_offsets;
        if byte_len(io_declared.dtype, &shape)? != end - begin {
            return Err(failed(format!("`{name}` is not {} there", io_declared.dtype)));
        }
        let mut bytes = vec![0; end - begin];
        file.seek(SeekFrom::Start(8 + header_length + begin as u64)).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        take(name, &HostTensor::new(io_declared.dtype, shape, bytes)?)?;
    }
    Ok(())
}
