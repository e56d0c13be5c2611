//! A file whose bytes are read when they are wanted.
//!
//! It is not mapped: where another process shortens a mapped file, the system ends the program that looks there.

use dijiang_format::regular;
use dijiang_passes::ir::tensor::{ReadError, Storage, Tensor};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// An open file, of the size that it had when it was opened.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    file: File,
    size: usize,
    written: (i64, i64),
    problem: OnceLock<ReadError>,
}

impl StoredFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(regular::open(path)?, path)
    }

    /// A file that is open; `path` is what errors name.
    pub fn of(file: File, path: &Path) -> io::Result<Self> {
        let opened = file.metadata()?;
        let (size, written) = (opened.len() as usize, time(&opened));
        Ok(Self { path: path.to_owned(), file, size, written, problem: OnceLock::new() })
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Whether a file with other contents stands at the path by now: what is made of this one is not made of that. Some
    /// file systems give the same file another number each time, so its number alone says nothing.
    fn is_replaced(&self) -> bool {
        let (Ok(own), Ok(there)) = (self.file.metadata(), std::fs::metadata(&self.path)) else {
            return false;
        };
        let is_other = (own.dev(), own.ino()) != (there.dev(), there.ino());
        is_other && (there.len(), time(&there)) != (self.size as u64, self.written)
    }

    fn failed(&self, error: &io::Error) -> ReadError {
        let short = self.file.metadata().ok().filter(|now| now.len() < self.size as u64);
        let reason = match short {
            Some(now) => format!(
                "it had {} bytes when it was opened, and has {} now (hint: is another program writing it? Begin again when it is complete)",
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
        let replaced = || {
            let reason = "another file took its place since it was opened (hint: is another program writing it? Begin again when it is complete)";
            ReadError { file: self.path.clone(), reason: reason.to_owned() }
        };
        self.problem.get().cloned().or_else(|| self.is_replaced().then(replaced))
    }
}

/// When the file was written last.
fn time(file: &Metadata) -> (i64, i64) {
    (file.mtime(), file.mtime_nsec())
}

/// Whether all that was read of the tensors was there, in files that are still in their places.
pub fn check<'a>(mut tensors: impl Iterator<Item = &'a Tensor>) -> Result<(), ReadError> {
    tensors.find_map(Tensor::problem).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::dtype::DType;
    use std::sync::Arc;
    use std::time::Duration;

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
        let expected = "it had 40 bytes when it was opened, and has 10 now (hint: is another program writing it? Begin again when it is complete)";
        assert_eq!(named, format!("{}: {expected}", path.display()));
    }

    #[test]
    fn a_file_that_was_replaced_is_named() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("w");
        std::fs::write(&path, [7; 40]).expect("it is written");
        let file = Arc::new(StoredFile::open(&path).expect("it opens"));
        let x = Tensor::view(DType::U8, vec![40], file, 0, 40).expect("a view");
        std::fs::hard_link(&path, home.path().join("link")).expect("a link");
        assert_eq!(check([&x].into_iter()), Ok(()));
        std::fs::write(home.path().join("new"), [8; 41]).expect("it is written");
        std::fs::rename(home.path().join("new"), &path).expect("it is replaced");
        assert_eq!(x.bytes().as_ref(), [7; 40], "what was opened is what is read");
        let named = check([&x].into_iter()).expect_err("it is another").to_string();
        assert!(named.contains("another file took its place since it was opened (hint: "), "{named}");
    }

    /// A file of as many bytes is another by the time it was written; some file systems give the same file another number.
    #[test]
    fn a_file_of_the_same_size_is_told_by_its_time() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("w");
        std::fs::write(&path, [7; 40]).expect("it is written");
        let file = Arc::new(StoredFile::open(&path).expect("it opens"));
        let written = file.metadata().and_then(|own| own.modified()).expect("a time");
        let x = Tensor::view(DType::U8, vec![40], file, 0, 40).expect("a view");
        for (later, is_named) in [(0, false), (1, true), (1_000_000_000, true)] {
            let new = File::create(home.path().join("new")).expect("it is made");
            new.write_all_at(&[8; 40], 0).expect("it is written");
            new.set_modified(written + Duration::from_nanos(later)).expect("it has a time");
            std::fs::rename(home.path().join("new"), &path).expect("it is replaced");
            assert_eq!(check([&x].into_iter()).is_err(), is_named, "{later} ns later");
        }
    }
}
