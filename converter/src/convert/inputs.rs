//! What a conversion was made from: the digests of every byte of it. The files are read for them while the weights are
//! written, so that the disk gives each byte once.

use crate::checkpoint::{self, Checkpoint};
use dijiang_format::manifest::{ManifestError, SourceFile};
use rayon::prelude::*;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file of the source, as it was when the source was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

/// The source is not told.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    File(#[from] ManifestError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: it was changed while it was read (hint: convert it again once nothing writes it)", path.display())]
    Changed { path: PathBuf },
}

impl Input {
    pub fn at(path: &Path) -> Result<Self, InputError> {
        let stamp = || {
            let file = std::fs::metadata(path)?;
            Ok((file.len(), file.modified()?))
        };
        let (bytes, written) = stamp().map_err(|source| InputError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), bytes, written })
    }

    /// The digests of its bytes, which must be those that were there from the beginning.
    fn describe(&self) -> Result<SourceFile, InputError> {
        let whole = SourceFile::describe_whole(&self.path)?;
        let described = SourceFile { sha256: whole.sha256, ..SourceFile::describe(&self.path)? };
        match Self::at(&self.path)? == *self {
            true => Ok(described),
            false => Err(InputError::Changed { path: self.path.clone() }),
        }
    }
}

/// The digests of all files, in their order.
pub fn describe(inputs: &[Input]) -> Result<Vec<SourceFile>, InputError> {
    inputs.par_iter().map(Input::describe).collect()
}

/// The files of a checkpoint: its weights, their index, and what lies beside them of `beside`.
pub fn of_checkpoint(
    checkpoint: &Checkpoint,
    beside: impl Iterator<Item = &'static str>,
) -> Result<Vec<Input>, InputError> {
    let index = (!checkpoint.is_gguf()).then_some(checkpoint::INDEX);
    let own = beside.chain(index).filter_map(|name| checkpoint.texts().file(name));
    own.chain(checkpoint.files().iter().cloned()).map(|path| Input::at(&path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_meanwhile_is_not_told() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("config.json");
        std::fs::write(&path, "{}").expect("it is written");
        let input = Input::at(&path).expect("it is there");
        let told = describe(std::slice::from_ref(&input)).expect("it is as it was");
        let empty_object = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!((told[0].name.as_str(), told[0].sha256.as_deref()), ("config.json", Some(empty_object)));
        std::fs::write(&path, "{ }").expect("it is written");
        let error = describe(&[input]).expect_err("it is another").to_string();
        assert!(error.contains("it was changed while it was read (hint: "), "{error}");
    }
}
