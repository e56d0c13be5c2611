//! Weights that stay in the files of the source: a bundle has hard links to them, under names of its own, and its
//! weight file holds only what is new or was changed.
//!
//! Hard links, as runtimes refuse a symbolic one that leaves the bundle. The files are the source's, so nothing may
//! write to them: what changes weights refuses such a bundle
//! ([`dijiang_format::manifest::Manifest::own_weights`]).

use dijiang_format::files::LINKED;
use dijiang_passes::ir::tensor::{SharedBytes, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// A weight file of the source.
#[derive(Clone)]
pub struct MappedFile {
    pub path: PathBuf,
    pub bytes: SharedBytes,
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedFile({})", self.path.display())
    }
}

/// Where a weight lies in a file that is linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name in the bundle.
    pub location: String,
    pub offset: u64,
    pub length: u64,
}

/// A file could not be linked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{}: no weight can stay in its file as it is (hint: leave --link out{hint})", path.display())]
    Nothing { path: PathBuf, hint: &'static str },
    #[error(
        "{}: it cannot be linked: {source} (hint: the bundle must be on the same file system, one with hard links; or leave --link out)",
        path.display()
    )]
    Io { path: PathBuf, source: io::Error },
}

impl MappedFile {
    /// The name of the link to it.
    pub fn link_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{LINKED}{name}")
    }

    /// Where the tensor lies, if it is a part of this file as it is.
    pub fn place(&self, tensor: &Tensor) -> Option<Place> {
        let (bytes, offset) = tensor.place().filter(|_| !tensor.is_empty())?;
        let is_here = std::ptr::addr_eq(Arc::as_ptr(bytes), Arc::as_ptr(&self.bytes));
        let (offset, length) = (offset as u64, tensor.byte_len() as u64);
        is_here.then(|| Place { location: self.link_name(), offset, length })
    }

    /// Links the file into `dir`. In a snapshot of a Hugging Face cache it is a symbolic link itself, which is followed.
    pub fn link_into(&self, dir: &Path) -> Result<(), LinkError> {
        let link = dir.join(self.link_name());
        let linked = std::fs::canonicalize(&self.path).and_then(|real| std::fs::hard_link(real, link));
        linked.map_err(|source| LinkError::Io { path: self.path.clone(), source })
    }
}
