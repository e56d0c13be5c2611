//! What a killed run goes on from: the vectors of the optimiser and the number of the last step, in a
//! safetensors file that is replaced whole or not at all.

use crate::bundle::replace::replace_file;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The file, in the bundle's directory `train`.
pub const FILE: &str = "checkpoint.safetensors";

/// A checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {reason} (hint: the checkpoint before it is still there)", path.display())]
    Write { path: PathBuf, reason: String },
    #[error("{}: {reason} (hint: leave --resume out to begin anew)", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{}: it belongs to a run with other options: {found}, now {expected} (hint: leave --resume out to begin anew)", path.display())]
    Other { path: PathBuf, found: String, expected: String },
}

/// A run after a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub step: usize,
    /// What the run depends on besides; a run is resumed under the same only.
    pub options: String,
    pub vectors: BTreeMap<String, Vec<f32>>,
}

impl Checkpoint {
    /// Writes the file into `dir`.
    pub fn write(&self, dir: &Path) -> Result<(), CheckpointError> {
        let path = dir.join(FILE);
        let failed = |reason: String| CheckpointError::Write { path: path.clone(), reason };
        let bytes: Vec<(&str, Vec<u8>)> = self
            .vectors
            .iter()
            .map(|(name, v)| (name.as_str(), v.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = bytes.iter().map(|(name, b)| {
            let view = TensorView::new(Dtype::F32, vec![b.len() / 4], b);
            view.map(|view| (*name, view)).map_err(|e| failed(e.to_string()))
        });
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let metadata = HashMap::from([
            ("step".to_owned(), self.step.to_string()),
            ("options".to_owned(), self.options.clone()),
        ]);
        let whole = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        replace_file(&path, &whole).map_err(|e| failed(e.to_string()))
    }

    /// Reads the file in `dir`, which must be of a run with these options.
    pub fn read(dir: &Path, options: &str) -> Result<Self, CheckpointError> {
        let path = dir.join(FILE);
        let failed = |reason: String| CheckpointError::Read { path: path.clone(), reason };
        let bytes = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry =
            |key: &str| metadata.get(key).cloned().ok_or_else(|| failed(format!("it names no `{key}`")));
        let found = entry("options")?;
        if found != options {
            return Err(CheckpointError::Other { path, found, expected: options.to_owned() });
        }
        let step = entry("step")?.parse().map_err(|_| failed("its step is no number".to_owned()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| failed(e.to_string()))?;
        let numbers = |view: &TensorView<'_>| {
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let vectors = tensors.iter().map(|(name, view)| (name.to_owned(), numbers(&view))).collect();
        Ok(Self { step, options: found, vectors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: usize) -> Checkpoint {
        let vectors = BTreeMap::from([("parameters.new".to_owned(), vec![1.5, -2.0])]);
        Checkpoint { step, options: "context 8".to_owned(), vectors }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        checkpoint(3).write(dir.path()).expect("it is written");
        checkpoint(4).write(dir.path()).expect("it is replaced");
        assert_eq!(Checkpoint::read(dir.path(), "context 8").expect("it is there"), checkpoint(4));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
        let other = Checkpoint::read(dir.path(), "context 9").expect_err("other options").to_string();
        assert!(other.contains("a run with other options: context 8, now context 9"), "{other}");
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Checkpoint::read(dir.path(), "").expect_err("there is none").to_string();
        assert!(missing.contains("(hint: leave --resume out to begin anew)"), "{missing}");
        std::fs::write(dir.path().join(FILE), [0; 20]).expect("it is written");
        assert!(matches!(Checkpoint::read(dir.path(), ""), Err(CheckpointError::Read { .. })));
    }
}
