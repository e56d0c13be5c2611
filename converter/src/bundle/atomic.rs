//! Directories that appear whole or not at all: written beside the target, made durable, and renamed.

use super::lock::{BundleLock, LockError};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_runtime::temporary::{self, Temporary, goes_if_empty, is_vacant, parent};
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
    #[error(
        "{path}: it is no file of the bundle, which is replaced with all that is in it (hint: move it out of the bundle)"
    )]
    Foreign { path: String },
    #[error("{path}: expected the path of a directory to be made")]
    NoName { path: String },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path}: {doing}: {source}")]
    Io { path: String, doing: &'static str, source: io::Error },
}

/// A bundle that is being written. It is removed when dropped, unless [`committed`](Self::commit).
#[derive(Debug)]
pub struct NewBundle {
    target: PathBuf,
    temporary: Temporary,
    /// In it.
    path: PathBuf,
    force: bool,
    /// Whether all that is at the target is in it.
    keeps: bool,
    /// That of the target, let go before its parents.
    _target_lock: BundleLock,
    /// Dropped, and so removed where nothing came into them, after the temporary directory.
    _parents: NewParents,
}

impl NewBundle {
    /// Begins a bundle at `target`. With `force` a bundle that is there will be replaced; anything
    /// else that is there, except an empty directory, is refused.
    pub fn begin(target: &Path, force: bool) -> Result<Self, BundleError> {
        if target.file_name().is_none() {
            return Err(BundleError::NoName { path: show(target) });
        }
        // Without a slash or a dot at its end, which would be looked for in a directory that is not there yet.
        let target = &followed(&target.components().collect::<PathBuf>());
        let parents = NewParents::of(parent(target));
        if !parent(target).is_dir() {
            let failed =
                |source| BundleError::Io { path: show(parent(target)), doing: "it cannot be made", source };
            std::fs::create_dir_all(parent(target)).map_err(failed)?;
        }
        let lock = BundleLock::acquire(target)?;
        let new = Self::begin_locked(target, force, lock, parents)?;
        check_own(&new.target)?;
        Ok(Self { keeps: false, ..new })
    }

    fn begin_locked(
        target: &Path,
        force: bool,
        lock: BundleLock,
        parents: NewParents,
    ) -> Result<Self, BundleError> {
        let parent = parent(target);
        let failed = |path: &Path, doing| {
            let path = show(path);
            move |source| BundleError::Io { path, doing, source }
        };
        if parent.is_dir() && is_vacant(target) {
            restore(target).map_err(failed(parent, "it cannot be read"))?;
        }
        check(target, force)?;
        temporary::remove_abandoned(target).map_err(failed(parent, "it cannot be read"))?;
        let temporary = Temporary::directory(target).map_err(failed(target, "it cannot be written"))?;
        let (target, path) = (target.to_owned(), temporary.path());
        Ok(Self { target, temporary, path, force, keeps: true, _target_lock: lock, _parents: parents })
    }

    /// Begins another version of the bundle at `target`: with all that is there, except the files to be written anew.
    /// The files are linked where the file system can, so they must not be written to. The lock is that of the target,
    /// held since before anything of it was read.
    pub fn revise(target: &Path, anew: &[&str], lock: BundleLock) -> Result<Self, BundleError> {
        let new = Self::begin_locked(&followed(target), true, lock, NewParents(Vec::new()))?;
        let failed = |source| BundleError::Io { path: show(target), doing: "it cannot be copied", source };
        temporary::clean(&new.target).map_err(failed)?;
        link_all(&new.target, new.path(), anew).map_err(failed)?;
        Ok(new)
    }

    /// Where the files are written until they are committed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the bundle as it will be called, for errors: where it is written now is nobody's concern.
    pub fn place(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    /// Makes the files durable and puts them in place. A run that is killed at any point leaves the
    /// old bundle or the new one.
    pub fn commit(self) -> Result<(), BundleError> {
        let failed = |doing| {
            let path = show(&self.target);
            move |source| BundleError::Io { path, doing, source }
        };
        sync(&self.path).map_err(failed("its files cannot be made durable"))?;
        check(&self.target, self.force)?;
        if !self.keeps {
            check_own(&self.target)?;
        }
        let is_new = is_vacant(&self.target);
        let replaced = self.temporary.place(|| match is_new {
            true => std::fs::rename(&self.path, &self.target),
            // The old bundle is now in the temporary directory, and goes when `self` is dropped.
            false => exchange(&self.path, &self.target, &self.temporary.aside()),
        });
        if let Err(source) = replaced {
            let error = failed("it cannot be renamed into place")(source);
            if self.temporary.aside().exists() && !self.target.exists() {
                // The old bundle stands aside, where the next run finds it.
                self.temporary.leave();
            }
            return Err(error);
        }
        File::open(parent(&self.target))
            .and_then(|f| f.sync_all())
            .map_err(failed("its directory cannot be made durable"))
    }
}

/// The directories above a bundle that were not there before it. On drop they go again, from the inside out, as far
/// as they are empty; where a signal ends the program, too.
#[derive(Debug)]
struct NewParents(Vec<PathBuf>);

impl NewParents {
    fn of(parent: &Path) -> Self {
        let new = parent.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let new: Vec<PathBuf> = new.map(Path::to_owned).collect();
        new.iter().for_each(|directory| goes_if_empty(directory, true));
        Self(new)
    }
}

impl Drop for NewParents {
    fn drop(&mut self) {
        // The first that holds something, such as the committed bundle, ends it.
        let _ = self.0.iter().try_for_each(std::fs::remove_dir);
        self.0.iter().for_each(|directory| goes_if_empty(directory, false));
    }
}

/// A link to a bundle stays a link: what it points to is replaced.
fn followed(target: &Path) -> PathBuf {
    let real = target.is_symlink().then(|| target.canonicalize().ok()).flatten();
    real.unwrap_or_else(|| target.to_owned())
}

/// Refuses a place where something stands that is not to be replaced.
pub fn check(target: &Path, force: bool) -> Result<(), BundleError> {
    // A link that leads nowhere is something too.
    if is_vacant(target) && (target.exists() || !target.is_symlink()) {
        return Ok(());
    }
    if !target.join(files::MANIFEST).is_file() {
        return Err(BundleError::NotABundle { path: show(target) });
    }
    if force { Ok(()) } else { Err(BundleError::Exists { path: show(target) }) }
}

/// Refuses a bundle with something in it that no command wrote there, such as the source itself: it would go with the
/// bundle. A manifest that cannot be read, or is of an earlier version, does not tell.
fn check_own(bundle: &Path) -> Result<(), BundleError> {
    let Some(manifest) = Manifest::read(bundle).ok().filter(|manifest| !manifest.files.is_empty()) else {
        return Ok(());
    };
    let failed = |source| BundleError::Io { path: show(bundle), doing: "it cannot be read", source };
    for entry in std::fs::read_dir(bundle).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, name) = (entry.path(), entry.file_name());
        let is_listed =
            name.to_str().is_some_and(|name| files::is_beside(name) || manifest.file(name).is_some());
        if !is_listed && !temporary::is_abandoned(&path) {
            return Err(BundleError::Foreign { path: show(&path) });
        }
    }
    Ok(())
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// Puts back the bundle that a run killed between the renames of [`exchange_by_steps`] had set aside.
fn restore(target: &Path) -> io::Result<()> {
    match temporary::set_aside(target)?.filter(|old| old.join(files::MANIFEST).is_file()) {
        Some(old) => std::fs::rename(old, target),
        None => Ok(()),
    }
}

/// Links all that is in `from` into `to`, except the files called `except` at its top.
fn link_all(from: &Path, to: &Path, except: &[&str]) -> io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, link) = (entry.path(), to.join(entry.file_name()));
        if except.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&link)?;
            link_all(&path, &link, &[])?;
        } else if std::fs::hard_link(&path, &link).is_err() {
            std::fs::copy(&path, &link)?;
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

/// Puts the directory `a` in the place of `b`, in one step. What was there is at `a` then, or stands aside.
fn exchange(a: &Path, b: &Path, aside: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => exchange_by_steps(a, b, aside),
        done => Ok(done?),
    }
}

/// For file systems that cannot swap: for a moment nothing is at `b`, and what was there stays aside.
fn exchange_by_steps(a: &Path, b: &Path, aside: &Path) -> io::Result<()> {
    std::fs::rename(b, aside)?;
    if let Err(e) = std::fs::rename(a, b) {
        std::fs::rename(aside, b)?;
        return Err(e);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A bundle whose one file says `text`.
    fn write(target: &Path, force: bool, text: &str) -> Result<(), BundleError> {
        let new = NewBundle::begin(target, force)?;
        fs::write(new.path().join(files::MANIFEST), text).expect("it is written");
        fs::create_dir(new.path().join("train")).expect("it is made");
        new.commit()
    }

    fn read(target: &Path) -> String {
        fs::read_to_string(target.join(files::MANIFEST)).expect("it is there")
    }

    fn names(directory: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<std::ffi::OsString> =
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
    fn a_revised_bundle_keeps_what_is_not_written_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("b");
        write(&target, false, "one").expect("it is new");
        fs::write(target.join("train/step"), "7").expect("it is written");
        let revise = |target: &Path| {
            let lock = BundleLock::acquire(target).expect("nobody holds it");
            NewBundle::revise(target, &[files::MANIFEST], lock)
        };
        drop(revise(&target).expect("it begins"));
        assert_eq!(
            (read(&target), names(&target)),
            ("one".to_owned(), vec![files::MANIFEST.into(), "train".into()])
        );
        let new = revise(&target).expect("it begins");
        assert_eq!(names(new.path()), ["train"]);
        fs::write(new.path().join(files::MANIFEST), "two").expect("it is written");
        new.commit().expect("it is replaced");
        let step = fs::read_to_string(target.join("train/step")).expect("it is there");
        assert_eq!((read(&target), step), ("two".to_owned(), "7".to_owned()));
        assert_eq!(names(directory.path()), ["b"]);
        assert!(matches!(revise(&target.join("train")), Err(BundleError::NotABundle { .. })));
    }

    /// What a run leaves that is killed while it writes.
    fn killed(target: &Path) -> PathBuf {
        let new = NewBundle::begin(target, true).expect("it begins");
        fs::write(new.path().join(files::WEIGHTS), "").expect("it is written");
        let left = new.path().to_owned();
        new.temporary.leave();
        left
    }

    #[test]
    fn nothing_is_left_of_what_was_not_committed() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("b");
        let abandoned = killed(&target);
        assert!(abandoned.exists());
        let new = NewBundle::begin(&target, false).expect("it begins");
        assert!(new.path().exists());
        let error = NewBundle::begin(&target, true).expect_err("one run writes it already");
        assert!(matches!(error, BundleError::Lock(LockError::Held { .. })), "{error}");
        assert!(new.path().exists());
        drop(new);
        assert_eq!(names(directory.path()), [] as [&str; 0]);
    }

    #[test]
    fn what_somebody_else_made_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let foreign = [".b.tmp-notes", ".b.tmp-1", ".b.tmp-1.old"].map(|name| directory.path().join(name));
        for path in &foreign {
            fs::create_dir(path).expect("it is made");
            fs::write(path.join("thesis.tex"), "thesis").expect("it is written");
        }
        write(&directory.path().join("b"), false, "one").expect("it is new");
        write(&directory.path().join("b"), true, "two").expect("it is replaced");
        assert!(foreign.iter().all(|path| path.join("thesis.tex").exists()));
    }

    #[test]
    fn parents_are_made_only_with_the_bundle() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("new/deep/b");
        drop(NewBundle::begin(&target, false).expect("it begins"));
        assert_eq!(names(directory.path()), [] as [&str; 0]);
        fs::create_dir(directory.path().join("new")).expect("it is made");
        drop(NewBundle::begin(&target, false).expect("it begins"));
        assert_eq!(names(directory.path()), ["new"], "it was there before");
        write(&target, false, "one").expect("it is new");
        assert_eq!(read(&target), "one");
    }

    #[test]
    fn a_file_with_the_name_of_a_leftover_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(".b.tmp-1"), "").expect("it is written");
        write(&directory.path().join("b"), false, "one").expect("it is new");
        assert_eq!(names(directory.path()), [".b.tmp-1", "b"]);
    }

    #[test]
    fn a_link_stays_and_the_bundle_it_names_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let [target, link, dangling] = ["deep/b", "link", "dangling"].map(|name| directory.path().join(name));
        write(&target, false, "one").expect("it is new");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let e = write(&link, false, "two").expect_err("it exists");
        assert!(matches!(e, BundleError::Exists { .. }), "{e}");
        write(&link, true, "two").expect("it is replaced");
        assert!(link.is_symlink());
        assert_eq!(
            (read(&target), names(target.parent().expect("deep"))),
            ("two".to_owned(), vec!["b".into()])
        );
        std::os::unix::fs::symlink("nowhere", &dangling).expect("a link");
        assert!(matches!(NewBundle::begin(&dangling, true), Err(BundleError::NotABundle { .. })));
    }

    /// As a kill between the two renames of swapping by steps leaves it.
    #[test]
    fn a_bundle_that_was_set_aside_comes_back() {
        for is_made in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let target = directory.path().join("b");
            write(&target, false, "one").expect("it is new");
            {
                // The lock goes with the killed run.
                let new = NewBundle::begin(&target, true).expect("it begins");
                fs::write(new.path().join(files::MANIFEST), "two").expect("it is written");
                fs::rename(&target, new.temporary.aside()).expect("it is set aside");
                new.temporary.leave();
            }
            if is_made {
                fs::create_dir(&target).expect("it is made");
            }
            temporary::clean(directory.path()).expect("what is left is removed");
            assert!(matches!(NewBundle::begin(&target, false), Err(BundleError::Exists { .. })));
            assert_eq!(read(&target), "one");
            write(&target, true, "three").expect("it is replaced");
            assert_eq!((read(&target), names(directory.path())), ("three".to_owned(), vec!["b".into()]));
        }
    }

    #[test]
    fn two_renames_put_one_in_the_place_of_the_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let [a, b, aside] = ["a", "b", "aside"].map(|name| directory.path().join(name));
        for path in [&a, &b] {
            fs::create_dir(path).expect("it is made");
            fs::write(path.join("name"), path.as_os_str().as_encoded_bytes()).expect("it is written");
        }
        exchange_by_steps(&a, &b, &aside).expect("it is put there");
        assert_eq!(fs::read(b.join("name")).expect("it is there"), a.as_os_str().as_encoded_bytes());
        assert_eq!(fs::read(aside.join("name")).expect("it is there"), b.as_os_str().as_encoded_bytes());
        assert_eq!(names(directory.path()), ["aside", "b"], "nothing is left that could fail");
        fs::remove_dir_all(&aside).expect("it is removed");
        exchange_by_steps(&a, &b, &aside).expect_err("there is nothing to put there");
        assert_eq!(names(directory.path()), ["b"], "what was there is there");
    }
}
