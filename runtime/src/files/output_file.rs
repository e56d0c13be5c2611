//! Files that a user names to be written.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::files::temporary::{Temporary, parent};

/// Links that are followed, at most.
const LINKS: usize = 40;

/// Writes a file completely, or leaves what was there. A link stays a link: what it points to is written. A pipe or a
/// terminal is written into, and stays what it is. What is open already, such as `/dev/stdout`, is written on to.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            check_directory(path)?;
            return NewFile::write(path, bytes)?.place();
        }
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
        return NewFile::write(path, bytes)?.place();
    }
    OpenOptions::new().append(true).open(path)?.write_all(bytes)
}

/// Says of a file that cannot be made what is in the place of its directory.
fn check_directory(path: &Path) -> io::Result<()> {
    let directory = parent(path);
    let said = match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => format!("{} is a file, expected a directory", directory.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let directory = directory.display();
            format!("there is no directory {directory} (hint: mkdir -p {directory})")
        }
        Err(e) => return Err(e),
    };
    Err(io::Error::new(io::ErrorKind::NotADirectory, said))
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
        at = parent(&at).join(link);
    }
    at
}

/// A file that is written and durable, beside its place. It is removed when dropped before it is placed.
#[derive(Debug)]
pub struct NewFile {
    target: PathBuf,
    temporary: Temporary,
}

impl NewFile {
    /// Writes what is to be at `path`, or at what that links to. It gets the permissions of what is there.
    pub fn write(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        let (target, old) = match std::fs::canonicalize(path) {
            Ok(real) => (real, Some(std::fs::metadata(path)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (followed(path), None),
            Err(e) => return Err(e),
        };
        let temporary = Temporary::beside(&target)?;
        let mut file = create(&temporary.path(), old.as_ref())?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(Self { target, temporary })
    }

    /// Where it is written.
    pub fn path(&self) -> PathBuf {
        self.temporary.path()
    }

    /// Puts it in its place.
    pub fn place(self) -> io::Result<()> {
        Self::place_all(&[self]).map_err(|(_, error)| error)
    }

    /// Puts files in their places, one after the other, each durably, which a signal does not break off. What fails is
    /// returned with its place; the files after it are left out.
    pub fn place_all(files: &[Self]) -> Result<(), (PathBuf, io::Error)> {
        let all: Vec<&Temporary> = files.iter().map(|file| &file.temporary).collect();
        let place = |file: &Self| {
            std::fs::rename(file.path(), &file.target)?;
            File::open(parent(&file.target))?.sync_all()
        };
        let place = |file: &Self| place(file).map_err(|e| (file.target.clone(), e));
        Temporary::place_all(&all, || files.iter().try_for_each(place))
    }
}

/// Makes a new file with the permissions of the old one, which nobody else reads before it has them.
fn create(path: &Path, old: Option<&Metadata>) -> io::Result<File> {
    let Some(old) = old else { return File::create_new(path) };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(old.permissions())?;
    Ok(file)
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
    fn a_private_file_is_private_before_anything_is_in_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let new = create(&home.path().join("b"), Some(&path.metadata().unwrap())).unwrap();
        assert_eq!(new.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_open_is_written_on_to() {
        use std::os::fd::AsRawFd as _;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let log = OpenOptions::new().append(true).open(&path).unwrap();
        write_file(&PathBuf::from(format!("/proc/self/fd/{}", log.as_raw_fd())), b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
        assert_eq!(names(home.path()), ["log"]);
    }

    #[test]
    fn files_are_placed_in_their_order_up_to_one_that_cannot_be() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let new = |name: &str, text: &str| NewFile::write(&at(name), text.as_bytes()).unwrap();
        NewFile::place_all(&[new("a", "one"), new("b", "two"), new("a", "three")]).unwrap();
        assert_eq!(
            (std::fs::read(at("a")).unwrap(), std::fs::read(at("b")).unwrap()),
            (b"three".into(), b"two".into())
        );
        let files = [new("a", "four"), new("c", "five"), new("a", "six")];
        std::fs::create_dir(at("c")).unwrap();
        let (place, _) = NewFile::place_all(&files).unwrap_err();
        assert_eq!((place, std::fs::read(at("a")).unwrap()), (at("c"), b"four".into()));
        drop(files);
        assert_eq!(names(home.path()), ["a", "b", "c"]);
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
