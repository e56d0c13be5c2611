//! Where something is written until it is complete: a directory beside its place, from which it is renamed into it.
//!
//! The directory is called `.NAME.tmp-PID`, and holds a file that says who made it. It is locked while its maker
//! lives. What a killed run left is removed by the next run of the same user that writes to the same place. What has
//! such a name but not that file, or is another user's, is never touched, unless it is private and empty and its maker
//! is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dijiang_format::digest::digest;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// The file that says whose the directory is.
const OWNER: &str = "made-by-dijiang";
const OWNER_TEXT: &str =
    "dijiang writes here until it is done. What a killed run left is removed by the next one.\n";
/// In the name of the directory, after that of what is written.
const TEMPORARY: &str = ".tmp-";
/// What is being written.
const NEW: &str = "new";
/// What was in its place, where the two cannot be exchanged in one step.
const OLD: &str = "old";
/// The mode of the directory: what is written may be meant for fewer eyes than the directory around it.
const PRIVATE: u32 = 0o700;
/// Longest name that is part of another: file systems take 255 bytes.
const LONGEST: usize = 220;
/// Digits of a digest that stand for the end of a longer one.
const DIGITS: usize = 16;
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
    /// What is said in place of the notes.
    route: Option<String>,
    /// Files that go with the process.
    files: BTreeSet<PathBuf>,
    /// Directories that go with it, where nothing is in them.
    directories: BTreeSet<PathBuf>,
}

static OPEN: Mutex<Open> = Mutex::new(Open {
    places: BTreeMap::new(),
    notes: BTreeMap::new(),
    route: None,
    files: BTreeSet::new(),
    directories: BTreeSet::new(),
});

fn open() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Temporary {
    /// Makes one for what is to be at `target`, in the same directory. What killed runs left there goes, as far as it can.
    pub fn beside(target: &Path) -> io::Result<Self> {
        tidy(target);
        Self::begin(target, Some(target.to_owned()))
    }

    fn begin(target: &Path, place: Option<PathBuf>) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let first = format!("{}", std::process::id());
        let further = (1..MOST).map(|n| format!("{first}-{n}"));
        let mut open = open();
        for suffix in std::iter::once(first.clone()).chain(further) {
            let directory = parent(target).join(beside(name, &format!("{TEMPORARY}{suffix}")));
            match DirBuilder::new().mode(PRIVATE).create(&directory) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(()) => {
                    let lock = claim(&directory, File::lock).inspect_err(|_| drop(remove(&directory)))?;
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

    /// A directory for what is needed for a while only, where the system has such things. Other users write there too,
    /// so what killed runs left there is left to the system.
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
        Self::place_all(&[self], rename)
    }

    /// The same for several, which a signal does not part.
    pub(crate) fn place_all<E>(all: &[&Self], rename: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut open = open();
        rename()?;
        open.places.extend(all.iter().map(|temporary| (temporary.directory.clone(), None)));
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

/// Says whose a new directory is. It is locked first: what has an owner and no lock is abandoned. On a file system
/// without locks it never is, and so is never removed by others.
fn claim(directory: &Path, lock: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    let open = open_directory(directory)?;
    loop {
        match lock(&open) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => tracing::debug!("{}: this file system has no locks: {e}", directory.display()),
            Ok(()) => {}
        }
        break;
    }
    std::fs::write(directory.join(OWNER), OWNER_TEXT)?;
    Ok(open)
}

/// Opens a directory, and nothing that a link leads to.
fn open_directory(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn gone(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

fn remove(directory: &Path) -> io::Result<()> {
    match open_directory(directory) {
        Ok(open) => remove_open(directory, &open),
        Err(e) => gone(e),
    }
}

/// The owner's file goes last, so that after a kill on the way the rest is still known. What is removed is in the
/// directory that is open, whatever stands at its path by now.
fn remove_open(path: &Path, directory: &File) -> io::Result<()> {
    empty(directory, Some(OWNER))?;
    unlinkat(directory, OWNER, AtFlags::empty()).map_err(io::Error::from).or_else(gone)?;
    std::fs::remove_dir(path).or_else(gone)
}

/// Removes all that is in a directory, except a file of that name.
fn empty(directory: &File, except: Option<&str>) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || except.is_some_and(|e| name.to_bytes() == e.as_bytes())
        {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // One of these is said of a directory.
            Err(Errno::ISDIR | Errno::PERM) => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                empty(&openat(directory, name, flags, Mode::empty())?.into(), None)?;
                unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(io::Error::from).or_else(gone)?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The name of a hidden file or directory that is for what is called `name`, and lies beside it.
pub fn beside(name: &OsStr, ending: &str) -> OsString {
    let mut own = OsString::from(".");
    own.push(short(name));
    own.push(ending);
    own
}

/// A name, or where something longer would not fit a file system, its beginning and its digest.
fn short(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    if bytes.len() <= LONGEST {
        return name.to_owned();
    }
    let mut own = OsStr::from_bytes(&bytes[..LONGEST - DIGITS - 1]).to_owned();
    own.push("-");
    own.push(&digest(bytes)[..DIGITS]);
    own
}

/// The directory that a path lies in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name of the target, where a name is one that [`Temporary::beside`] gives: `.TARGET.tmp-PID` or
/// `.TARGET.tmp-PID-N`.
fn target_of(name: &OsStr) -> Option<&OsStr> {
    let name = name.as_bytes().strip_prefix(b".")?;
    let mark = name.windows(TEMPORARY.len()).rposition(|part| part == TEMPORARY.as_bytes())?;
    has_own_suffix(&name[mark + TEMPORARY.len()..]).then(|| OsStr::from_bytes(&name[..mark]))
}

fn has_own_suffix(rest: &[u8]) -> bool {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut numbers = rest.split(|byte| *byte == b'-');
    numbers.clone().count() <= 2 && numbers.all(is_number)
}

/// What a killed run left.
struct Abandoned {
    path: PathBuf,
    directory: File,
    target: PathBuf,
}

impl Abandoned {
    /// What stands at the path, if a killed run of this user left it.
    fn at(path: PathBuf, target: PathBuf) -> Option<Self> {
        let directory = open_directory(&path).ok()?;
        let is_own = directory.metadata().ok()?.uid() == rustix::process::geteuid().as_raw()
            && (owner(&directory).is_ok_and(|text| text == OWNER_TEXT.as_bytes())
                || is_only_begun(&path, &directory));
        // Let go at once: a child that is just being started may have the file open too, for a moment.
        let is_left = is_own && directory.try_lock().is_ok() && directory.unlock().is_ok();
        is_left.then_some(Self { path, directory, target })
    }

    /// What was at the target, where it was set aside.
    fn old(&self) -> Option<PathBuf> {
        Some(self.path.join(OLD)).filter(|old| old.exists())
    }

    /// Removes it, unless it holds the only copy of what was at the target.
    fn remove(&self) -> io::Result<()> {
        if self.old().is_some() && is_vacant(&self.target) {
            return Ok(());
        }
        remove_open(&self.path, &self.directory)
    }
}

/// Whether nothing is there, or a directory with nothing in it.
pub fn is_vacant(path: &Path) -> bool {
    !path.exists() || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a run was killed before it had written whose the directory is: nothing else is in it, and nobody is left to
/// write that.
fn is_only_begun(path: &Path, directory: &File) -> bool {
    let is_begun = match owner(directory) {
        Ok(text) => OWNER_TEXT.as_bytes().starts_with(&text),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    };
    let is_for_its_maker = directory.metadata().is_ok_and(|found| found.mode() & 0o7777 == PRIVATE);
    is_begun && is_for_its_maker && holds_nothing_else(directory).unwrap_or(false) && !maker_lives(path)
}

fn holds_nothing_else(directory: &File) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if ![b".".as_slice(), b"..", OWNER.as_bytes()].contains(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the process that the name of a directory tells is there. One that cannot be told counts as there.
fn maker_lives(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let mark = name.windows(TEMPORARY.len()).rposition(|part| part == TEMPORARY.as_bytes());
    let pid =
        mark.map(|mark| &name[mark + TEMPORARY.len()..]).and_then(|rest| rest.split(|b| *b == b'-').next());
    let pid = pid.and_then(|pid| std::str::from_utf8(pid).ok()?.parse().ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else { return true };
    !matches!(test_kill_process(pid), Err(Errno::SRCH))
}

/// What the owner's file says.
fn owner(directory: &File) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, OWNER, flags, Mode::empty())?);
    let mut text = Vec::new();
    file.take(OWNER_TEXT.len() as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Whether a killed run left what is at the path, for the next one to remove.
pub fn is_abandoned(path: &Path) -> bool {
    let target = path.file_name().and_then(target_of);
    target.is_some_and(|target| Abandoned::at(path.to_owned(), parent(path).join(target)).is_some())
}

/// What killed runs left in a directory, of these targets, in the order of the names.
fn abandoned_in(directory: &Path, is_meant: impl Fn(&OsStr) -> bool) -> io::Result<Vec<Abandoned>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(target) = target_of(&name).filter(|target| is_meant(target)) else { continue };
        found.extend(Abandoned::at(entry.path(), directory.join(target)));
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn abandoned(target: &Path) -> io::Result<Vec<Abandoned>> {
    let Some(name) = target.file_name() else { return Ok(Vec::new()) };
    let name = short(name);
    let mut all = abandoned_in(parent(target), |found| found == name)?;
    all.iter_mut().for_each(|one| target.clone_into(&mut one.target));
    Ok(all)
}

/// Removes what killed runs left in a directory that is ours, whatever it was for.
pub fn clean(directory: &Path) -> io::Result<()> {
    abandoned_in(directory, |_| true)?.iter().try_for_each(Abandoned::remove)
}

/// The same of one target, as far as it can be.
pub fn tidy(target: &Path) {
    if let Err(e) = remove_abandoned(target) {
        tracing::debug!("{}: what killed runs left could not be removed: {e}", target.display());
    }
}

/// Removes what killed runs left of the same target. What was set aside stays while nothing is at the target.
pub fn remove_abandoned(target: &Path) -> io::Result<()> {
    abandoned(target)?.iter().try_for_each(Abandoned::remove)
}

/// What a killed run had set aside of the same target ([`Temporary::aside`]).
pub fn set_aside(target: &Path) -> io::Result<Option<PathBuf>> {
    Ok(abandoned(target)?.iter().find_map(Abandoned::old))
}

/// Has [`give_up`] remove a file, such as a lock, as long as it is `there`.
pub fn goes_along(file: &Path, there: bool) {
    let files = &mut open().files;
    let _ = if there { files.insert(file.to_owned()) } else { files.remove(file) };
}

/// Has [`give_up`] remove a directory where nothing is in it, as long as it is `there`.
pub fn goes_if_empty(directory: &Path, there: bool) {
    let directories = &mut open().directories;
    let _ = if there { directories.insert(directory.to_owned()) } else { directories.remove(directory) };
}

/// Has [`give_up`] say, of a file, what is kept in it.
pub fn note_kept(file: &Path, what: &str) {
    open().notes.insert(file.to_owned(), what.to_owned());
}

/// Has [`give_up`] say this of a file in place of all notes: for a command whose parts would say what they keep, and how one
/// goes on after them alone.
pub fn note_route(file: &Path, what: &str) {
    open().route = Some(format!("{} {what}", file.display()));
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
    // From the inside out.
    for directory in held.directories.iter().rev() {
        let _ = std::fs::remove_dir(directory);
    }
    let unchanged = held.places.values().flatten().map(|target| match target.exists() {
        true => format!("{} is as it was", target.display()),
        false => format!("{} was not written", target.display()),
    });
    let kept = held.notes.iter().map(|(file, what)| format!("{} {what}", file.display()));
    let lines = match &held.route {
        Some(route) => vec![route.clone()],
        None => unchanged.chain(kept).collect(),
    };
    std::mem::forget(held);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        let is_own = |name: &str| target_of(OsStr::new(name)) == Some(OsStr::new("b"));
        for name in [".b.tmp-1", ".b.tmp-4194304", ".b.tmp-17-3"] {
            assert!(is_own(name), "{name}");
        }
        for name in
            [".b.tmp-", ".b.tmp-notes", ".b.tmp-1.old", ".b.tmp-1-2-3", ".b.tmp--1", ".c.tmp-1", "b.tmp-1"]
        {
            assert!(!is_own(name), "{name}");
        }
    }

    #[test]
    fn the_longest_name_has_one_beside_it() {
        let home = tempfile::tempdir().unwrap();
        let [target, other] = ["a", "b"].map(|end| home.path().join("n".repeat(254) + end));
        let abandoned = left(&target);
        drop(Temporary::beside(&other).unwrap());
        assert!(abandoned.join(NEW).exists(), "it is that of another name");
        drop(Temporary::beside(&target).unwrap());
        assert!(!abandoned.exists());
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

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    /// A run may be killed between any two calls.
    #[test]
    fn what_was_only_begun_goes_with_its_maker() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = std::process::Command::new("true").spawn().expect("it starts");
        let gone = child.id();
        child.wait().expect("it ends");
        let make = |suffix: &str, file: Option<(&str, &str)>| {
            let path = dir.path().join(format!(".b.tmp-{suffix}"));
            DirBuilder::new().mode(PRIVATE).create(&path).expect("a directory");
            file.inspect(|(name, text)| std::fs::write(path.join(name), text).expect("a file"));
            path
        };
        let begun = [
            make(&format!("{gone}"), None),
            make(&format!("{gone}-1"), Some((OWNER, ""))),
            make(&format!("{gone}-2"), Some((OWNER, "dijiang writes"))),
        ];
        let public = dir.path().join(format!(".b.tmp-{gone}-5"));
        DirBuilder::new().mode(0o755).create(&public).expect("a directory");
        let others = [
            public,
            make(&format!("{gone}-3"), Some(("notes", "mine"))),
            make(&format!("{gone}-4"), Some((OWNER, "another text"))),
            make(&format!("{}", std::process::id()), None),
        ];
        assert!(begun.iter().all(|path| is_abandoned(path)));
        assert!(!others.iter().any(|path| is_abandoned(path)));
        remove_abandoned(&dir.path().join("b")).expect("it is removed");
        assert!(begun.iter().all(|path| !path.exists()));
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn only_its_maker_looks_into_it() {
        let home = tempfile::tempdir().unwrap();
        let [own, plain] = ["b", "plain"].map(|name| home.path().join(name));
        let made = Temporary::directory(&own).unwrap();
        assert_eq!(mode(&made.directory), 0o700);
        std::fs::create_dir(&plain).unwrap();
        assert_eq!(mode(&made.path()), mode(&plain), "what is put in place is as any directory");
        let scratch = Temporary::scratch("dijiang-test").unwrap();
        assert_eq!(mode(&scratch.directory), 0o700);
    }

    #[test]
    fn a_file_system_without_locks_is_written_to() {
        let home = tempfile::tempdir().unwrap();
        let interrupted = std::cell::Cell::new(true);
        let lock = |_: &File| match interrupted.replace(false) {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        claim(home.path(), lock).unwrap();
        assert_eq!(std::fs::read_to_string(home.path().join(OWNER)).unwrap(), OWNER_TEXT);
    }

    /// Only root can give a directory away.
    #[test]
    fn what_is_another_users_stays() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("b");
        let foreign = left(&target);
        if std::os::unix::fs::chown(&foreign, Some(65534), None).is_err() {
            return;
        }
        remove_abandoned(&target).unwrap();
        clean(home.path()).unwrap();
        assert!(foreign.join(NEW).join("weights").exists());
    }

    #[test]
    fn what_took_the_place_of_something_abandoned_stays() {
        let home = tempfile::tempdir().unwrap();
        let (target, thesis) = (home.path().join("b"), home.path().join("thesis"));
        let path = left(&target);
        std::fs::create_dir(&thesis).unwrap();
        std::fs::write(thesis.join("chapter"), "").unwrap();
        std::fs::write(thesis.join(OWNER), OWNER_TEXT).unwrap();
        let found = abandoned(&target).unwrap();
        std::fs::rename(&path, home.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(&thesis, &path).unwrap();
        assert!(found[0].remove().is_err());
        assert!(thesis.join("chapter").exists() && thesis.join(OWNER).exists());
        assert!(!home.path().join("moved").join(NEW).exists(), "what was looked at is what is removed");
        clean(home.path()).unwrap();
        assert!(thesis.join("chapter").exists());
    }

    #[test]
    fn a_scratch_directory_leaves_others_alone() {
        let target = std::env::temp_dir().join("dijiang-test-scratch");
        let other = left(&target);
        drop(Temporary::scratch("dijiang-test-scratch").unwrap());
        assert!(other.exists());
        remove_abandoned(&target).unwrap();
        assert!(!other.exists());
    }

    #[test]
    fn the_only_copy_of_what_was_set_aside_stays() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("b");
        let path = left(&target);
        std::fs::create_dir(path.join(OLD)).unwrap();
        let tidy = || {
            remove_abandoned(&target).unwrap();
            clean(home.path()).unwrap();
            path.exists()
        };
        assert!(tidy());
        std::fs::create_dir(&target).unwrap();
        assert!(tidy(), "an empty directory is no copy");
        std::fs::write(target.join("weights"), "").unwrap();
        assert!(!tidy());
    }
}
