//! A file whose bytes are read when they are wanted.
//!
//! It is not mapped: where another process shortens a mapped file, the system ends the program that looks there.

use dijiang_passes::ir::tensor::{ReadError, Storage, Tensor};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// An open file, of the size that it had when it was opened.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    file: File,
    size: usize,
    problem: OnceLock<ReadError>,
}

impl StoredFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?, path)
    }

    /// A file that is open; `path` is what errors name.
    pub fn of(file: File, path: &Path) -> io::Result<Self> {
        let size = file.metadata()?.len() as usize;
        Ok(Self { path: path.to_owned(), file, size, problem: OnceLock::new() })
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    fn failed(&self, error: &io::Error) -> ReadError {
        let short = self.file.metadata().ok().filter(|now| now.len() < self.size as u64);
        let reason = match short {
            Some(now) => format!(
                "it had {} bytes when it was opened, and has {} now (hint: is another program writing it? Begin again when it is whole)",
                self.size,
                now.len()
            ),
            None => format!("it cannot be read: {error}"),
        };
        ReadError { file: self.path.clone(), reason }
    }
}

impl Storage for StoredFile {
    fn size(&self) -> usize {
        self.size
    }

    fn in_memory(&self) -> Option<&[u8]> {
        None
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        if let Err(error) = self.file.read_exact_at(into, at as u64) {
            into.fill(0);
            self.problem.get_or_init(|| self.failed(&error));
        }
    }

    fn problem(&self) -> Option<ReadError> {
        self.problem.get().cloned()
    }
}

/// Whether all that was read of the tensors was there.
pub fn check<'a>(mut tensors: impl Iterator<Item = &'a Tensor>) -> Result<(), ReadError> {
    tensors.find_map(Tensor::problem).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::dtype::DType;
    use std::sync::Arc;

    #[test]
    fn a_file_that_became_shorter_is_named() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("w");
        std::fs::write(&path, [7; 40]).expect("it is written");
        let file = Arc::new(StoredFile::open(&path).expect("it opens"));
        let x = Tensor::view(DType::U8, vec![40], file, 0, 40).expect("a view");
        assert_eq!((x.bytes().as_ref(), check([&x].into_iter())), ([7; 40].as_slice(), Ok(())));
        File::options().write(true).open(&path).and_then(|f| f.set_len(10)).expect("it is cut");
        assert_eq!(x.rows(0..10).bytes().as_ref(), [7; 10]);
        assert_eq!(check([&x].into_iter()), Ok(()), "what is left can be read");
        assert_eq!(x.bytes().as_ref(), [0; 40]);
        let named = check([&x].into_iter()).expect_err("it is short").to_string();
        let expected = "it had 40 bytes when it was opened, and has 10 now (hint: is another program writing it? Begin again when it is whole)";
        assert_eq!(named, format!("{}: {expected}", path.display()));
    }
}
