//! Files that a user names to be written.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use crate::files::temporary::Temporary;

/// Links that are followed, at most.
const LINKS: usize = 40;

/// Writes a file whole, or leaves what was there. A link stays a link: what it points to is written. A pipe or a
/// terminal is written into, and stays what it is.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return replace(&followed(path), bytes, None),
        Err(e) => return Err(e),
    };
    let kind = found.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("it is a directory, expected a file"));
    }
    if kind.is_block_device() {
        return Err(io::Error::other("it is a disk, which is not written into (hint: name a file)"));
    }
    if kind.is_file() && !is_descriptor(path) {
        return replace(&std::fs::canonicalize(path)?, bytes, Some(found));
    }
    OpenOptions::new().write(true).open(path)?.write_all(bytes)
}

/// Whether the path names an open file of this process, such as `/dev/stdout`: who opened it goes on with it.
fn is_descriptor(path: &Path) -> bool {
    ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|open| path.starts_with(open))
}

/// Where a link that leads nowhere yet leads.
fn followed(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let Ok(link) = std::fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("")).join(link);
    }
    at
}

/// Writes beside the file, makes that durable, and renames it. The new file has the permissions of the old one.
fn replace(path: &Path, bytes: &[u8], old: Option<Metadata>) -> io::Result<()> {
    let temporary = Temporary::beside(path)?;
    let new = temporary.path();
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    if let Some(old) = old {
        file.set_permissions(old.permissions())?;
    }
    file.sync_all()?;
    temporary.place(|| std::fs::rename(&new, path))?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_with_its_permissions() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a");
        write_file(&path, b"one").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(home.path()), ["a"]);
    }

    #[test]
    fn links_stay_links() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::write(at("a"), "").unwrap();
        symlink("a", at("link")).unwrap();
        symlink("new", at("early")).unwrap();
        write_file(&at("link"), b"one").unwrap();
        write_file(&at("early"), b"two").unwrap();
        assert!(at("link").is_symlink() && at("early").is_symlink());
        assert_eq!(
            (std::fs::read(at("a")).unwrap(), std::fs::read(at("new")).unwrap()),
            (b"one".into(), b"two".into())
        );
    }

    #[test]
    fn what_is_no_file_stays_what_it_is() {
        let home = tempfile::tempdir().unwrap();
        let refused = write_file(home.path(), b"").unwrap_err().to_string();
        assert_eq!(refused, "it is a directory, expected a file");
        let pipe = home.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        write_file(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(pipe.metadata().unwrap().file_type().is_fifo());
        write_file(Path::new("/dev/null"), b"nowhere").unwrap();
        assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());
        assert_eq!(names(home.path()), ["pipe"]);
    }
}
