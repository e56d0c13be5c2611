//! What the system says of a file, with what to do about it.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub(super) struct FileError {
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Names the file of an error.
    pub(super) fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self { path: path.to_owned(), source }
    }
}

/// What a failure says. Where the system has the last word of it, what to do about that comes behind.
pub(super) fn told(failure: &(dyn Error + 'static)) -> String {
    let text = failure.to_string();
    let hint = causes(failure).filter(|_| !text.contains("(hint: ")).find_map(hint);
    hint.map_or_else(|| text.clone(), |hint| format!("{text} (hint: {hint})"))
}

fn causes<'a>(failure: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a io::Error> {
    let next = |error: &&'a (dyn Error + 'static)| (*error).source();
    std::iter::successors(Some(failure), next).filter_map(|error| error.downcast_ref())
}

fn hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::NotFound => Some("is the path right, and is its directory there?"),
        ErrorKind::PermissionDenied => {
            Some("`ls -ld` of it and of its directory says who may read and write")
        }
        ErrorKind::ReadOnlyFilesystem => Some("name a place that can be written, or copy the bundle to one"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Some("make room, or name another disk")
        }
        ErrorKind::IsADirectory => Some("it is a directory: name a file in it"),
        ErrorKind::NotADirectory => Some("name another place"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ErrorKind) -> FileError {
        FileError::of(Path::new("a/b"))(kind.into())
    }

    #[test]
    fn what_the_system_says_comes_with_what_to_do() {
        #[derive(Debug, thiserror::Error)]
        #[error(transparent)]
        struct Around(#[from] FileError);
        let full = "a/b: no storage space (hint: make room, or name another disk)";
        assert_eq!(told(&of(ErrorKind::StorageFull)), full);
        assert_eq!(told(&Around(of(ErrorKind::StorageFull))), full);
        assert_eq!(told(&of(ErrorKind::Other)), "a/b: other error");
    }

    #[test]
    fn a_hint_of_the_failure_itself_is_enough() {
        #[derive(Debug, thiserror::Error)]
        #[error("{source} (hint: leave --resume out)")]
        struct Own {
            source: FileError,
        }
        let own = Own { source: of(ErrorKind::NotFound) };
        assert_eq!(told(&own), "a/b: entity not found (hint: leave --resume out)");
    }
}
