//! One command at a time writes a bundle. It holds a lock of the system on a file beside the bundle, which stays where
//! it is when the bundle is replaced, and in which stands who holds it. The system lets the lock go when its holder
//! ends, however it ends; a file that a killed command left is taken over by the next.

use dijiang_runtime::temporary::{self, goes_along, parent};
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// After the bundle's name, with a dot before it.
const SUFFIX: &str = ".dijiang-lock";

/// What the text in a lock begins with, so that no other file is taken for one.
const SIGN: &str = "`dijiang";

/// Longest command line that is told.
const LONGEST: usize = 200;

/// A bundle cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{}: {holder} is writing it (hint: wait until that has ended)", bundle.display())]
    Held { bundle: PathBuf, holder: String },
    #[error("{}: it is not a lock of dijiang's, and stands where one is needed (hint: move it away)", path.display())]
    Foreign { path: PathBuf },
    #[error("{}: another user's command has locked the bundle, or left this file behind (hint: wait until it has ended; remove the file if it has)", path.display())]
    Unreadable { path: PathBuf },
    #[error("{}: it cannot be locked: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A lock on a bundle, or on the place of one that is not there yet. It goes when dropped, and its file with it.
#[derive(Debug)]
pub struct BundleLock {
    /// Absent where nothing can be written beside the bundle: then nothing can replace it either.
    path: Option<PathBuf>,
    file: Option<File>,
}

impl BundleLock {
    /// Locks the bundle, or says who holds it.
    pub fn acquire(bundle: &Path) -> Result<Self, LockError> {
        let Some(path) = beside(bundle) else { return Self::inside(bundle) };
        let failed = |source| LockError::Io { path: path.clone(), source };
        loop {
            let mut file = match open(&path) {
                Ok(file) => file,
                Err(e) if is_closed(&e) => return Self::closed(bundle, path),
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                    return Err(LockError::Foreign { path });
                }
                Err(e) => return Err(failed(e)),
            };
            let mut text = String::new();
            let is_text = file.metadata().is_ok_and(|m| m.is_file())
                && (&file).take(4096).read_to_string(&mut text).is_ok();
            if !is_text || !(text.is_empty() || text.starts_with(SIGN)) {
                return Err(LockError::Foreign { path });
            }
            if !try_lock(&file, bundle, text.trim())? {
                continue;
            }
            // Who held it before may have removed the file in between: then this is a lock on nothing.
            if is_at(&file, &path) {
                // Another user's is locked all the same, but says nothing.
                let _ = describe(&mut file);
                goes_along(&path, true);
                return Ok(Self { path: Some(path), file: Some(file) });
            }
        }
    }

    /// No lock can be opened there: another user's stands there, or nothing.
    fn closed(bundle: &Path, path: PathBuf) -> Result<Self, LockError> {
        match std::fs::symlink_metadata(&path) {
            Ok(_) => Err(LockError::Unreadable { path }),
            Err(_) => Self::inside(bundle),
        }
    }

    /// Where nothing can be made beside the bundle, its own directory is locked.
    fn inside(bundle: &Path) -> Result<Self, LockError> {
        let Ok(directory) = File::open(bundle) else { return Ok(Self { path: None, file: None }) };
        try_lock(&directory, bundle, "")?;
        Ok(Self { path: None, file: Some(directory) })
    }
}

impl Drop for BundleLock {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            goes_along(path, false);
        }
        if let (Some(path), Some(file)) = (&self.path, &self.file)
            && is_at(file, path)
            && let Err(e) = std::fs::remove_file(path)
        {
            tracing::warn!("{} could not be removed: {e}", path.display());
        }
    }
}

/// Whether the lock is held now; `holder` is who is told to hold it otherwise. A file system without locks has none
/// to offer, which is told and no reason to refuse the work.
fn try_lock(file: &File, bundle: &Path, holder: &str) -> Result<bool, LockError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => {
            let holder = if holder.is_empty() { "another command" } else { holder };
            Err(LockError::Held { bundle: bundle.to_owned(), holder: holder.to_owned() })
        }
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(TryLockError::Error(e)) => {
            tracing::warn!(
                "{}: this file system has no locks ({e}): let no other command write it meanwhile",
                bundle.display()
            );
            Ok(true)
        }
    }
}

/// The lock's place: beside what the path leads to, so that all paths to a bundle have one lock.
fn beside(bundle: &Path) -> Option<PathBuf> {
    let real = bundle.canonicalize().or_else(|_| {
        let name = bundle.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok::<_, io::Error>(parent(bundle).canonicalize()?.join(name))
    });
    let real = real.ok()?;
    Some(real.parent()?.join(temporary::beside(real.file_name()?, SUFFIX)))
}

/// What stands there already is not changed, and a link not followed.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let own =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    match own {
        // Another user's can be locked, but not written to.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|_| e)
        }
        opened => opened,
    }
}

/// Whether nothing can be made there.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotFound | InvalidFilename)
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

/// Writes who holds the lock into it.
fn describe(file: &mut File) -> io::Result<()> {
    let command: String = std::env::args_os()
        .skip(1)
        .map(|word| format!(" {}", word.to_string_lossy()))
        .flat_map(|word| word.chars().collect::<Vec<_>>())
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty());
    let host = host.map_or(String::new(), |host| format!(" on {host}"));
    let process = std::process::id();
    // Other users must see that it is held, whatever is usual for files here.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{SIGN}{command}` (process {process}{host}, since {})", time(SystemTime::now()))
}

/// `2026-11-28 19:07:26 UTC`; the day by Hinnant's algorithm, <https://howardhinnant.github.io/date_algorithms.html>.
fn time(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (day, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("it is there");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_holds_it_and_says_who_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = dir.path().join("b");
        fs::create_dir(&bundle).expect("it is made");
        std::os::unix::fs::symlink("b", dir.path().join("link")).expect("it is made");
        let held = BundleLock::acquire(&bundle).expect("nobody holds it");
        assert_eq!(names(dir.path()), [".b.dijiang-lock", "b", "link"]);
        for path in [bundle.clone(), dir.path().join("link"), bundle.join("../b")] {
            let error = BundleLock::acquire(&path).expect_err("it is held").to_string();
            let head = format!("{}: `dijiang", path.display());
            let process = format!("` (process {} on ", std::process::id());
            assert!(error.starts_with(&head) && error.contains(&process), "{error}");
            assert!(error.ends_with(" UTC) is writing it (hint: wait until that has ended)"), "{error}");
        }
        // It is that of the place, whatever is there.
        fs::remove_dir(&bundle).expect("it is removed");
        assert!(BundleLock::acquire(&bundle).is_err());
        drop(held);
        drop(BundleLock::acquire(&bundle).expect("nobody holds it"));
        assert_eq!(names(dir.path()), ["link"]);
    }

    /// It could be read and locked, and is no lock all the same.
    #[test]
    fn a_directory_in_its_place_is_no_lock() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = open(dir.path()).expect_err("a directory").kind();
        assert_eq!(error, io::ErrorKind::IsADirectory);
    }

    #[test]
    fn what_a_killed_command_left_does_not_block_and_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let left = dir.path().join(".b.dijiang-lock");
        fs::write(&left, "`dijiang finetune b` (process 1 on h, since 2026-01-01 00:00:00 UTC)\n")
            .expect("it is written");
        let lock = BundleLock::acquire(&dir.path().join("b")).expect("nobody holds it");
        let text = fs::read_to_string(&left).expect("it is there");
        assert!(text.contains(&format!("(process {}", std::process::id())), "{text}");
        assert_eq!(text.lines().count(), 1);
        drop(lock);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_file_that_is_no_lock_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join(".b.dijiang-lock");
        fs::write(&place, "thesis").expect("it is written");
        let error = BundleLock::acquire(&dir.path().join("b")).expect_err("it is refused").to_string();
        assert!(error.ends_with("and stands where one is needed (hint: move it away)"), "{error}");
        assert_eq!(fs::read_to_string(&place).expect("it is there"), "thesis");
        fs::remove_file(&place).expect("it is removed");
        std::os::unix::fs::symlink("elsewhere", &place).expect("it is made");
        assert!(matches!(BundleLock::acquire(&dir.path().join("b")), Err(LockError::Foreign { .. })));
        assert_eq!(names(dir.path()), [".b.dijiang-lock"]);
    }

    #[test]
    fn other_users_see_that_it_is_held() {
        let dir = tempfile::tempdir().expect("a directory");
        let (bundle, path) = (dir.path().join("b"), dir.path().join(".b.dijiang-lock"));
        fs::write(&path, "").expect("it is written");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
        let lock = BundleLock::acquire(&bundle).expect("nobody holds it");
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o644);
        drop(lock);
        // As where it cannot be opened, which root always can.
        drop(BundleLock::closed(&bundle, path.clone()).expect("there is none"));
        fs::write(&path, "").expect("it is written");
        let error = BundleLock::closed(&bundle, path).expect_err("one is there").to_string();
        assert!(error.ends_with("(hint: wait until it has ended; remove the file if it has)"), "{error}");
    }

    #[test]
    fn where_no_bundle_can_be_there_is_nothing_to_lock() {
        assert!(BundleLock::acquire(Path::new("/nowhere/at/all")).is_ok());
        assert!(BundleLock::acquire(Path::new("/")).is_ok());
    }

    #[test]
    fn times_are_told_as_the_calendar_has_them() {
        let at = |seconds| time(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_795_892_846), "2026-11-28 19:07:26 UTC");
    }
}
