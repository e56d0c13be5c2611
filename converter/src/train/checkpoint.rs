//! What a killed run goes on from: the vectors of the optimiser and the number of the last step, in a
//! safetensors file that is replaced completely or not at all.

use super::identity::RunIdentity;
use crate::bundle::replace::replace_file;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The file, in the bundle's directory `train`.
pub const FILE: &str = "checkpoint.safetensors";

/// A checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {reason} (hint: {hint})", path.display())]
    Write { path: PathBuf, reason: String, hint: &'static str },
    #[error("{}: {reason} (hint: leave --resume out to begin anew)", path.display())]
    Read { path: PathBuf, reason: String },
    #[error(
        "{}: it is of another run: {} (hint: repeat that run's options, or leave --resume out to begin anew)",
        path.display(), differences.join("; ")
    )]
    Other { path: PathBuf, differences: Vec<String> },
}

/// A run after a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub step: usize,
    /// What the run depends on besides; a run is resumed under the same only.
    pub run: RunIdentity,
    pub vectors: BTreeMap<String, Vec<f32>>,
}

/// What the file says besides its tensors: one entry, as entries have no order.
const ENTRY: &str = "dijiang.checkpoint";

/// The text of that entry.
#[derive(Serialize, Deserialize)]
struct Described {
    step: usize,
    run: RunIdentity,
}

impl Checkpoint {
    /// Writes the file into `dir`.
    pub fn write(&self, dir: &Path) -> Result<(), CheckpointError> {
        let path = dir.join(FILE);
        let hint = match path.exists() {
            true => "the checkpoint before it is still there",
            false => "there is none before it: make room, and begin the run again",
        };
        let failed = |reason: String| CheckpointError::Write { path: path.clone(), reason, hint };
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
        let described = Described { step: self.step, run: self.run.clone() };
        let described = serde_json::to_string(&described).map_err(|e| failed(e.to_string()))?;
        let metadata = HashMap::from([(ENTRY.to_owned(), described)]);
        let whole = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        replace_file(&path, &whole).map_err(|e| failed(e.to_string()))
    }

    /// Reads the file in `dir`, which must be of this run.
    pub fn read(dir: &Path, run: &RunIdentity) -> Result<Self, CheckpointError> {
        let path = dir.join(FILE);
        let failed = |reason: String| CheckpointError::Read { path: path.clone(), reason };
        let bytes = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
        let text = header.metadata().as_ref().and_then(|entries| entries.get(ENTRY)).ok_or_else(|| {
            failed("an earlier version wrote it, and does not say which data and weights it is of".to_owned())
        })?;
        let Described { step, run: found } = serde_json::from_str(text).map_err(|e| failed(e.to_string()))?;
        if found != *run {
            return Err(CheckpointError::Other { path, differences: run.differences(&found) });
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| failed(e.to_string()))?;
        let numbers = |view: &TensorView<'_>| {
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let vectors = tensors.iter().map(|(name, view)| (name.to_owned(), numbers(&view))).collect();
        Ok(Self { step, run: found, vectors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(batch: &str) -> RunIdentity {
        let options = [("--batch".to_owned(), batch.to_owned())].into();
        RunIdentity { weights: "00".to_owned(), options, ..RunIdentity::default() }
    }

    fn checkpoint(step: usize) -> Checkpoint {
        let vectors = BTreeMap::from([("parameters.new".to_owned(), vec![1.5, -2.0])]);
        Checkpoint { step, run: run("8"), vectors }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        checkpoint(3).write(dir.path()).expect("it is written");
        checkpoint(4).write(dir.path()).expect("it is replaced");
        assert_eq!(Checkpoint::read(dir.path(), &run("8")).expect("it is there"), checkpoint(4));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
        let now = RunIdentity { weights: "01".to_owned(), ..run("9") };
        let other = Checkpoint::read(dir.path(), &now).expect_err("another run").to_string();
        assert_eq!(
            other.replace(&dir.path().display().to_string(), "DIR"),
            "DIR/checkpoint.safetensors: it is of another run: the weights of the bundle are others (the run has ended, they \
             were trained or imported since, or the bundle is another); --batch was 8 and is 9 (hint: repeat that run's options, \
             or leave --resume out to begin anew)"
        );
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Checkpoint::read(dir.path(), &run("8")).expect_err("there is none").to_string();
        assert!(missing.contains("(hint: leave --resume out to begin anew)"), "{missing}");
        std::fs::write(dir.path().join(FILE), [0; 20]).expect("it is written");
        assert!(matches!(Checkpoint::read(dir.path(), &run("8")), Err(CheckpointError::Read { .. })));
    }

    #[test]
    fn one_of_an_earlier_version_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let metadata =
            HashMap::from([("step", "3"), ("options", "context 8")].map(|(k, v)| (k.into(), v.into())));
        let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("a tensor");
        let old = safetensors::serialize([("parameters.new", view)], Some(metadata)).expect("a file");
        std::fs::write(dir.path().join(FILE), old).expect("it is written");
        let error = Checkpoint::read(dir.path(), &run("8")).expect_err("it is refused").to_string();
        assert!(
            error.ends_with(
                "an earlier version wrote it, and does not say which data and weights it is of (hint: leave --resume \
                 out to begin anew)"
            ),
            "{error}"
        );
    }
}
