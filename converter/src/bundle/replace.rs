//! One file of a bundle replaced by another, completely or not at all.

pub use dijiang_runtime::NewFile;
use std::path::Path;

/// Writes beside the file, makes that durable, and renames it. The new file has the permissions of the old one.
pub fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    dijiang_runtime::write_file(path, bytes)
}
