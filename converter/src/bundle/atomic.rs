//! Directories that appear whole or not at all: written beside the target, made durable, and renamed.

use super::layout;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Why a bundle could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{path}: it exists already (hint: --force replaces a bundle)")]
    Exists { path: String },
    #[error("{path}: it is not a bundle (no dijiang.json in it), so it is not replaced")]
    NotABundle { path: String },
    #[error("{path}: expected the path of a directory to be made")]
    NoName { path: String },
    #[error("{path}: {doing}: {source}")]
    Io { path: String, doing: &'static str, source: io::Error },
}

/// A bundle that is being written. It is removed when dropped, unless [`committed`](Self::commit).
#[derive(Debug)]
pub struct NewBundle {
    target: PathBuf,
    temporary: PathBuf,
    force: bool,
    /// Held while the directory is written: what nobody holds was left by a killed run.
    _lock: File,
}

impl NewBundle {
    /// Begins a bundle at `target`. With `force` a bundle that is there will be replaced; anything
    /// else that is there, except an empty directory, is refused.
    pub fn begin(target: &Path, force: bool) -> Result<Self, BundleError> {
        check(target, force)?;
        let name = target.file_name().ok_or_else(|| BundleError::NoName { path: show(target) })?;
        let parent = parent(target);
        let failed = |doing| move |source| BundleError::Io { path: show(parent), doing, source };
        std::fs::create_dir_all(parent).map_err(failed("it cannot be made"))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".tmp-");
        remove_abandoned(parent, &prefix).map_err(failed("it cannot be read"))?;
        prefix.push(std::process::id().to_string());
        let temporary = parent.join(prefix);
        std::fs::create_dir(&temporary).map_err(failed("it cannot be written into"))?;
        let lock = File::open(&temporary).and_then(|f| f.lock().map(|()| f));
        let lock =
            lock.map_err(|source| BundleError::Io { path: show(&temporary), doing: "lock", source })?;
        Ok(Self { target: target.to_owned(), temporary, force, _lock: lock })
    }

    /// Where the files are written until they are committed.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Makes the files durable and puts them in place. A run that is killed at any point leaves the
    /// old bundle or the new one.
    pub fn commit(self) -> Result<(), BundleError> {
        let target = &self.target;
        let failed = |doing| move |source| BundleError::Io { path: show(target), doing, source };
        sync(&self.temporary).map_err(failed("its files cannot be made durable"))?;
        check(&self.target, self.force)?;
        let is_new = !self.target.exists() || is_empty(&self.target);
        let replaced = if is_new {
            std::fs::rename(&self.temporary, &self.target)
        } else {
            // The old bundle is now in the temporary place, and goes when `self` is dropped.
            exchange(&self.temporary, &self.target)
        };
        replaced.map_err(failed("it cannot be renamed into place"))?;
        File::open(parent(&self.target))
            .and_then(|f| f.sync_all())
            .map_err(failed("its directory cannot be made durable"))
    }
}

impl Drop for NewBundle {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.temporary)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{} could not be removed: {e}", self.temporary.display());
        }
    }
}

fn check(target: &Path, force: bool) -> Result<(), BundleError> {
    if !target.exists() || is_empty(target) {
        return Ok(());
    }
    if !target.join(layout::MANIFEST).is_file() {
        return Err(BundleError::NotABundle { path: show(target) });
    }
    if force { Ok(()) } else { Err(BundleError::Exists { path: show(target) }) }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// Removes what killed runs left of the same target.
fn remove_abandoned(parent: &Path, prefix: &OsString) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let is_held = File::open(entry.path()).is_ok_and(|f| f.try_lock().is_err());
        if !is_held {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Every file and directory below, then the directory itself.
fn sync(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

/// Swaps two directories in one step.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => exchange_by_steps(a, b),
        done => Ok(done?),
    }
}

/// For file systems that cannot swap: for a moment nothing is at `b`, and what was there is beside it.
fn exchange_by_steps(a: &Path, b: &Path) -> io::Result<()> {
    let mut aside = a.as_os_str().to_owned();
    aside.push(".old");
    std::fs::rename(b, &aside)?;
    std::fs::rename(a, b)?;
    std::fs::rename(&aside, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A bundle whose one file says `text`.
    fn write(target: &Path, force: bool, text: &str) -> Result<(), BundleError> {
        let new = NewBundle::begin(target, force)?;
        fs::write(new.path().join(layout::MANIFEST), text).expect("it is written");
        fs::create_dir(new.path().join("train")).expect("it is made");
        new.commit()
    }

    fn read(target: &Path) -> String {
        fs::read_to_string(target.join(layout::MANIFEST)).expect("it is there")
    }

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<OsString> =
            fs::read_dir(directory).expect("it is there").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_bundle_appears_and_is_replaced_only_by_force() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("deep/b");
        write(&target, false, "one").expect("it is new");
        let e = write(&target, false, "two").expect_err("it exists").to_string();
        assert_eq!(e, format!("{}: it exists already (hint: --force replaces a bundle)", target.display()));
        assert_eq!(read(&target), "one");
        write(&target, true, "two").expect("it is replaced");
        assert_eq!(read(&target), "two");
        assert_eq!(names(target.parent().expect("deep")), ["b"]);
    }

    #[test]
    fn what_is_no_bundle_is_never_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("home");
        fs::create_dir(&target).expect("it is made");
        fs::write(target.join("thesis.tex"), "").expect("it is written");
        assert!(matches!(write(&target, true, ""), Err(BundleError::NotABundle { .. })));
        assert_eq!(names(&target), ["thesis.tex"]);
        fs::remove_file(target.join("thesis.tex")).expect("it is removed");
        write(&target, false, "one").expect("an empty directory is fine");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("it is written");
        assert!(matches!(write(&file, true, ""), Err(BundleError::NotABundle { .. })));
        assert!(matches!(write(&file.join("b"), true, ""), Err(BundleError::Io { .. })));
    }

    #[test]
    fn nothing_is_left_of_what_was_not_committed() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("b");
        let abandoned = directory.path().join(".b.tmp-1");
        fs::create_dir(&abandoned).expect("it is made");
        fs::write(abandoned.join(layout::WEIGHTS), "").expect("it is written");
        let new = NewBundle::begin(&target, false).expect("it begins");
        assert!(!abandoned.exists());
        assert!(new.path().exists());
        assert!(NewBundle::begin(&target, false).is_err(), "one run writes it already");
        assert!(new.path().exists());
        drop(new);
        assert_eq!(names(directory.path()), [] as [&str; 0]);
    }

    #[test]
    fn swapping_by_steps_is_swapping() {
        let directory = tempfile::tempdir().expect("a directory");
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        for path in [&a, &b] {
            fs::create_dir(path).expect("it is made");
            fs::write(path.join("name"), path.as_os_str().as_encoded_bytes()).expect("it is written");
        }
        exchange_by_steps(&a, &b).expect("they swap");
        assert_eq!(fs::read(a.join("name")).expect("it is there"), b.as_os_str().as_encoded_bytes());
        assert_eq!(names(directory.path()), ["a", "b"]);
    }
}
