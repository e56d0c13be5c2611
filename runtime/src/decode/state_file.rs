//! A decoder's state as a safetensors file: its tensors, what was fed, and the logits after it.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorView};

use crate::decode::identity::StateOrigin;
use crate::decode::state::{DecoderState, History};
use crate::files::output_file::write_file;
use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;
use dijiang_format::dtype::DType;
use dijiang_format::seal::{self, UNSEALED};

/// Tokens that were no padding, per row.
const SEEN: &str = "history.seen";
/// The mask of all columns where a cache grows, no columns otherwise.
const MASK: &str = "history.mask";
/// Token columns, `[1]`.
const COLUMNS: &str = "history.columns";
const LOGITS: &str = "logits";
/// Before the names of the state's own tensors, with their place in the graph's order.
const STATE: &str = "state.";

/// The metadata of earlier versions: what wrote the file.
const WRITER: &str = "dijiang.model";
/// The metadata: the digest of the file itself, and what wrote it; the one entry, as entries have no order.
const SEAL: &str = "dijiang.state";

const UNREADABLE: &str = "this is no saved state, which `dijiang generate --save-state` writes";

/// What a file holds.
pub(crate) struct SavedState {
    pub(crate) state: DecoderState,
    /// Where a token was fed.
    pub(crate) logits: Option<HostTensor>,
    /// Absent in files of earlier versions, and in those of graphs that are in no bundle.
    pub(crate) writer: Option<StateOrigin>,
}

/// Writes the file whole, or leaves what was there.
pub(crate) fn write(
    path: &Path,
    state: &DecoderState,
    logits: Option<&HostTensor>,
    writer: Option<&StateOrigin>,
) -> Result<(), RuntimeError> {
    let failed = |reason: String| RuntimeError::State { path: path.to_path_buf(), reason };
    let tensors = named(state, logits)?;
    let mut views = Vec::new();
    for (name, tensor) in &tensors {
        let dtype = file_dtype(tensor.dtype())
            .ok_or_else(|| failed(format!("`{name}` is {}, which no state is", tensor.dtype())))?;
        let view = TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
        views.push((name.as_str(), view.map_err(|e| failed(e.to_string()))?));
    }
    let writer = writer.map_or(String::new(), |writer| format!(" {writer}"));
    let metadata = HashMap::from([(SEAL.to_owned(), format!("{UNSEALED}{writer}"))]);
    let mut whole = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
    seal::seal(&mut whole, SEAL);
    write_file(path, &whole).map_err(|source| RuntimeError::Write { path: path.to_path_buf(), source })
}

fn named(
    state: &DecoderState,
    logits: Option<&HostTensor>,
) -> Result<Vec<(String, HostTensor)>, RuntimeError> {
    let history = &state.history;
    let rows = history.seen.len();
    let wide = history.mask.first().map_or(0, Vec::len);
    let mut tensors = vec![
        (SEEN.to_owned(), HostTensor::from_i64(&[rows], &history.seen)?),
        (COLUMNS.to_owned(), HostTensor::from_i64(&[1], &[history.columns as i64])?),
        (MASK.to_owned(), HostTensor::from_i64(&[rows, wide], &history.mask.concat())?),
    ];
    tensors.extend(logits.map(|tensor| (LOGITS.to_owned(), tensor.clone())));
    // The file sorts its tensors; the number brings the graph's order back.
    let numbered = state.tensors.iter().enumerate();
    tensors.extend(numbered.map(|(i, (name, tensor))| (format!("{STATE}{i:06}.{name}"), tensor.clone())));
    Ok(tensors)
}

/// What the file holds.
pub(crate) fn read(path: &Path) -> Result<SavedState, RuntimeError> {
    let failed = |reason: String| RuntimeError::State { path: path.to_path_buf(), reason };
    let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| failed(format!("{UNREADABLE}: {e}")))?;
    let tensor = |name: &str| -> Result<HostTensor, RuntimeError> {
        let view = file.tensor(name).map_err(|e| failed(e.to_string()))?;
        let dtype = host_dtype(view.dtype())
            .ok_or_else(|| failed(format!("`{name}` is {:?}, which no state is", view.dtype())))?;
        Ok(HostTensor::new(dtype, view.shape().to_vec(), view.data().to_vec())?)
    };
    let seen = tensor(SEEN)?.to_i64()?;
    let [columns] = *tensor(COLUMNS)?.to_i64()? else {
        return Err(failed(format!("`{COLUMNS}` is not one number")));
    };
    let columns = usize::try_from(columns).map_err(|_| failed(format!("`{COLUMNS}` is {columns}")))?;
    let mask = rows(&tensor(MASK)?, seen.len()).ok_or_else(|| failed(format!("`{MASK}` is not by rows")))?;
    let mut names: Vec<&str> = file.names().into_iter().filter(|name| name.starts_with(STATE)).collect();
    names.sort_unstable();
    let state = |name: &&str| {
        let own = name[STATE.len()..].split_once('.').map_or(*name, |(_, own)| own);
        Ok((own.to_owned(), tensor(name)?))
    };
    let tensors = names.iter().map(state).collect::<Result<_, RuntimeError>>()?;
    let logits = file.names().contains(&LOGITS).then(|| tensor(LOGITS)).transpose()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
    let none = HashMap::new();
    let entries = header.metadata().as_ref().unwrap_or(&none);
    let is_known = entries.keys().all(|key| key == SEAL || key == WRITER);
    if !is_known || seal::holds(&bytes, SEAL) == Some(false) {
        return Err(failed("it was changed since it was written".to_owned()));
    }
    let sealed = entries.get(SEAL).and_then(|text| text.split_once(' ')).map(|(_, writer)| writer);
    let writer = sealed.or_else(|| entries.get(WRITER).map(String::as_str)).map(StateOrigin::parse);
    let state = DecoderState { tensors, history: History { mask, seen, columns } };
    Ok(SavedState { state, logits, writer })
}

fn rows(mask: &HostTensor, count: usize) -> Option<Vec<Vec<i64>>> {
    let [rows, columns] = *mask.shape() else { return None };
    let flat = mask.to_i64().ok().filter(|_| rows == count)?;
    Some((0..rows).map(|row| flat[row * columns..(row + 1) * columns].to_vec()).collect())
}

fn file_dtype(dtype: DType) -> Option<FileDtype> {
    TYPES.iter().find(|(own, _)| *own == dtype).map(|(_, file)| *file)
}

fn host_dtype(dtype: FileDtype) -> Option<DType> {
    TYPES.iter().find(|(_, file)| *file == dtype).map(|(own, _)| *own)
}

/// What states and histories are made of.
const TYPES: [(DType, FileDtype); 5] = [
    (DType::F64, FileDtype::F64),
    (DType::F32, FileDtype::F32),
    (DType::F16, FileDtype::F16),
    (DType::BF16, FileDtype::BF16),
    (DType::I64, FileDtype::I64),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> DecoderState {
        let history = History { mask: vec![Vec::new()], seen: vec![0], columns: 0 };
        let numbers = HostTensor::new(DType::F32, vec![1, 2], vec![1; 8]).unwrap();
        DecoderState { tensors: vec![("past".to_owned(), numbers)], history }
    }

    #[test]
    fn no_byte_of_a_state_changes_unnoticed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state.safetensors");
        let writer = StateOrigin::parse("00ff a bundle");
        write(&path, &state(), None, Some(&writer)).unwrap();
        let read_back = read(&path).unwrap();
        assert_eq!((read_back.writer.as_ref(), read_back.state.tensors.len()), (Some(&writer), 1));
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).map(|_| ()).expect_err(&format!("byte {at}")).to_string();
            assert!(error.contains("state.safetensors"), "{error}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path).is_err(), "{at}");
        }
        // Of no bundle: nothing wrote it that could be told.
        write(&path, &state(), None, None).unwrap();
        assert_eq!(read(&path).unwrap().writer, None);
    }

    #[test]
    fn a_state_that_cannot_be_written_says_so() {
        let state = state();
        let full = write(Path::new("/dev/full"), &state, None, None).unwrap_err().to_string();
        assert_eq!(full, "/dev/full: it cannot be written: No space left on device (os error 28)");
    }
}
