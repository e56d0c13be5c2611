//! Where something is written until it is whole: a directory beside its place, from which it is renamed into it.
//!
//! The directory is called `.NAME.tmp-PID`, and holds a file that says who made it. It is locked while its maker
//! lives. What a killed run left is removed by the next run that writes to the same place. What has such a name but not
//! that file is somebody else's, and is never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file that says whose the directory is.
const OWNER: &str = "made-by-dijiang";
const OWNER_TEXT: &str =
    "dijiang writes here until it is done. What a killed run left is removed by the next one.\n";
/// In the name of the directory, behind that of what is written.
const TEMPORARY: &str = ".tmp-";
/// What is being written.
const NEW: &str = "new";
/// What was in its place, where the two cannot be exchanged in one step.
const OLD: &str = "old";
/// Directories of one process for one place, at most.
const MOST: usize = 1000;

/// A directory to write in. It is removed when this is dropped.
#[derive(Debug)]
pub struct Temporary {
    directory: PathBuf,
    /// Held while this process writes: what nobody holds was left by a killed run.
    lock: Option<File>,
}

/// What this process has open, and what it has kept on the way.
#[derive(Debug, Default)]
struct Open {
    /// Directories, and the places that they are for, where that is anything to a user.
    places: BTreeMap<PathBuf, Option<PathBuf>>,
    notes: BTreeMap<PathBuf, String>,
    /// Files that go with the process.
    files: BTreeSet<PathBuf>,
}

static OPEN: Mutex<Open> =
    Mutex::new(Open { places: BTreeMap::new(), notes: BTreeMap::new(), files: BTreeSet::new() });

fn open() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Temporary {
    /// Makes one for what is to be at `target`, in the same directory. What killed runs left there goes, as far as it can.
    pub fn beside(target: &Path) -> io::Result<Self> {
        Self::begin(target, Some(target.to_owned()))
    }

    fn begin(target: &Path, place: Option<PathBuf>) -> io::Result<Self> {
        if let Err(e) = remove_abandoned(target) {
            tracing::debug!("{}: what killed runs left could not be removed: {e}", target.display());
        }
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let first = format!("{}", std::process::id());
        let further = (1..MOST).map(|n| format!("{first}-{n}"));
        let mut open = open();
        for suffix in std::iter::once(first.clone()).chain(further) {
            let mut own = prefix(name);
            own.push(suffix);
            let directory = parent(target).join(own);
            match std::fs::create_dir(&directory) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(()) => {
                    let lock = claim(&directory).inspect_err(|_| drop(remove(&directory)))?;
                    open.places.insert(directory.clone(), place);
                    return Ok(Self { directory, lock: Some(lock) });
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The same, for a directory, which is made.
    pub fn directory(target: &Path) -> io::Result<Self> {
        let made = Self::beside(target)?;
        std::fs::create_dir(made.path())?;
        Ok(made)
    }

    /// A directory for what is needed for a while only, where the system has such things.
    pub fn scratch(name: &str) -> io::Result<Self> {
        let made = Self::begin(&std::env::temp_dir().join(name), None)?;
        std::fs::create_dir(made.path())?;
        Ok(made)
    }

    /// What is to be written.
    pub fn path(&self) -> PathBuf {
        self.directory.join(NEW)
    }

    /// Where what is at the target may stand while it is exchanged.
    pub fn aside(&self) -> PathBuf {
        self.directory.join(OLD)
    }

    /// Renames what was written into place, which a signal does not break off.
    pub fn place(&self, rename: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut open = open();
        rename()?;
        open.places.insert(self.directory.clone(), None);
        Ok(())
    }

    /// Leaves the directory where it is, for the next run to find.
    pub fn leave(mut self) {
        open().places.remove(&self.directory);
        // A child that is just being started may have the lock's file open too, for a moment.
        let _ = self.lock.take().map(|lock| lock.unlock());
        std::mem::forget(self);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = remove(&self.directory) {
            tracing::warn!("{} could not be removed: {e}", self.directory.display());
        }
        open().places.remove(&self.directory);
    }
}

/// Says whose a new directory is. It is locked first: what has an owner and no lock is abandoned.
fn claim(directory: &Path) -> io::Result<File> {
    let lock = File::open(directory)?;
    lock.lock()?;
    std::fs::write(directory.join(OWNER), OWNER_TEXT)?;
    Ok(lock)
}

/// The owner's file goes last, so that after a kill on the way the rest is still known.
fn remove(directory: &Path) -> io::Result<()> {
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) => return gone(e),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        match entry.file_type() {
            _ if entry.file_name() == OWNER => {}
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path).or_else(gone)?,
            _ => std::fs::remove_file(&path).or_else(gone)?,
        }
    }
    std::fs::remove_file(directory.join(OWNER)).or_else(gone)?;
    std::fs::remove_dir(directory).or_else(gone)
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(TEMPORARY);
    prefix
}

/// Whether a name is one that [`Temporary::beside`] gives: `PID` or `PID-N` behind the prefix.
fn is_own_name(name: &OsStr, prefix: &OsStr) -> bool {
    name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes()).is_some_and(has_own_suffix)
}

fn has_own_suffix(rest: &[u8]) -> bool {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut numbers = rest.split(|byte| *byte == b'-');
    numbers.clone().count() <= 2 && numbers.all(is_number)
}

/// The directories that killed runs left in a directory, of these names, in their order.
fn abandoned_in(directory: &Path, is_meant: impl Fn(&OsStr) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let is_own = is_meant(&entry.file_name())
            && entry.file_type()?.is_dir()
            && std::fs::read(path.join(OWNER)).is_ok_and(|text| text == OWNER_TEXT.as_bytes());
        // Let go at once: a child that is just being started may have the file open too, for a moment.
        if is_own && File::open(&path).is_ok_and(|f| f.try_lock().is_ok() && f.unlock().is_ok()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Those that were for the same target.
fn abandoned(target: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(name) = target.file_name() else { return Ok(Vec::new()) };
    let prefix = prefix(name);
    abandoned_in(parent(target), |name| is_own_name(name, &prefix))
}

/// Removes what killed runs left in a directory that is ours, whatever it was for.
pub fn clean(directory: &Path) -> io::Result<()> {
    let is_own = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        let marked = name.windows(TEMPORARY.len()).rposition(|part| part == TEMPORARY.as_bytes());
        let prefix = marked.map(|at| &name[..at + TEMPORARY.len()]);
        name.first() == Some(&b'.') && prefix.is_some_and(|prefix| has_own_suffix(&name[prefix.len()..]))
    };
    abandoned_in(directory, is_own)?.iter().try_for_each(|left| remove(left))
}

/// Removes what killed runs left of the same target.
pub fn remove_abandoned(target: &Path) -> io::Result<()> {
    abandoned(target)?.iter().try_for_each(|directory| remove(directory))
}

/// What a killed run had set aside of the same target ([`Temporary::aside`]).
pub fn set_aside(target: &Path) -> io::Result<Option<PathBuf>> {
    Ok(abandoned(target)?.into_iter().map(|directory| directory.join(OLD)).find(|old| old.exists()))
}

/// Has [`give_up`] remove a file, such as a lock, as long as it is `there`.
pub fn goes_along(file: &Path, there: bool) {
    let files = &mut open().files;
    let _ = if there { files.insert(file.to_owned()) } else { files.remove(file) };
}

/// Has [`give_up`] say, of a file, what is kept in it.
pub fn note_kept(file: &Path, what: &str) {
    open().notes.insert(file.to_owned(), what.to_owned());
}

/// For a program that a signal ends: removes every directory of this process, and returns a line for each place that
/// stays as it was and for all that was kept. From then on nothing is renamed into place.
pub fn give_up() -> Vec<String> {
    let held = open();
    for directory in held.places.keys() {
        // Other threads may still write there.
        let removed = (0..20).any(|_| remove(directory).is_ok());
        if !removed {
            tracing::warn!("{} could not be removed", directory.display());
        }
    }
    for file in &held.files {
        let _ = std::fs::remove_file(file);
    }
    let unchanged = held.places.values().flatten().map(|target| match target.exists() {
        true => format!("{} is as it was", target.display()),
        false => format!("{} was not written", target.display()),
    });
    let kept = held.notes.iter().map(|(file, what)| format!("{} {what}", file.display()));
    let lines = unchanged.chain(kept).collect();
    std::mem::forget(held);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        let is_own = |name: &str| is_own_name(OsStr::new(name), &prefix(OsStr::new("b")));
        for name in [".b.tmp-1", ".b.tmp-4194304", ".b.tmp-17-3"] {
            assert!(is_own(name), "{name}");
        }
        for name in
            [".b.tmp-", ".b.tmp-notes", ".b.tmp-1.old", ".b.tmp-1-2-3", ".b.tmp--1", ".c.tmp-1", "b.tmp-1"]
        {
            assert!(!is_own(name), "{name}");
        }
    }

    /// As a killed run leaves it.
    fn left(target: &Path) -> PathBuf {
        let made = Temporary::directory(target).unwrap();
        std::fs::write(made.path().join("weights"), "").unwrap();
        let left = made.directory.clone();
        made.leave();
        left
    }

    #[test]
    fn what_a_killed_run_left_goes_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("b");
        let (abandoned, other) = (left(&target), left(&home.path().join("c")));
        let foreign = [".b.tmp-notes", ".b.tmp-12345", ".b.tmp-9999999"].map(|name| home.path().join(name));
        foreign.iter().for_each(|directory| std::fs::create_dir(directory).unwrap());
        std::fs::write(foreign[1].join(OWNER), "me").unwrap();
        let held = Temporary::beside(&target).unwrap();
        // One of the same name may stand there again.
        assert!(!abandoned.join(NEW).exists() && other.exists());
        let second = Temporary::beside(&target).unwrap();
        assert!(held.directory.exists() && second.directory.exists(), "each has its own");
        drop((held, second));
        clean(home.path()).unwrap();
        assert!(!other.exists());
        assert!(foreign.iter().all(|directory| directory.exists()));
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 3);
    }
}
