//! Digests of files' contents. What was digested before is not read again while the file's size, times and inode are
//! what they were.

use super::record::{DIRECTORY, Digests};
use crate::bundle::model_files;
use crate::convert::source;
use crate::onnx::locations::locations;
use dijiang_format::digest::Hasher;
use dijiang_format::files::MANIFEST;
use dijiang_format::regular;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Below [`DIRECTORY`].
const FILE: &str = "digests.json";

/// A file that changes so soon after another change may keep its times: clocks of file systems tick slowly.
const TICK: Duration = Duration::from_millis(100);
/// Where a file system counts whole seconds.
const SLOW_TICK: Duration = Duration::from_secs(2);

/// How deep directories are looked into.
const DEEPEST: usize = 16;

/// The digests of what was found, by names. What cannot be read has the reason in place of one: whether it is what it was
/// is not known.
pub(super) type Found = BTreeMap<String, Result<String, String>>;

/// The digests of what could be read. What is left out is new to whoever compares it later.
pub(super) fn readable(found: &Found) -> Digests {
    found.iter().filter_map(|(name, digest)| Some((name.clone(), digest.clone().ok()?))).collect()
}

/// All digests, or why there are not all.
pub(super) fn whole(found: Found) -> Result<Digests, String> {
    let one = |(name, digest): (String, Result<String, String>)| match digest {
        Ok(digest) => Ok((name, digest)),
        Err(reason) => Err(format!("{name} {reason}")),
    };
    found.into_iter().map(one).collect()
}

/// A file as it was when it was digested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    digest: String,
}

impl Known {
    fn of(file: &Metadata, digest: String) -> Self {
        let modified = (file.mtime(), file.mtime_nsec());
        let changed = (file.ctime(), file.ctime_nsec());
        Self { size: file.size(), inode: file.ino(), modified, changed, digest }
    }

    /// Whether another change, from then on, would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified.max(self.changed);
        let tick = if nanoseconds == 0 { SLOW_TICK } else { TICK };
        let changed =
            UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32);
        changed + tick < now
    }
}

/// What is kept from run to run.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// By the path from the root; by the absolute path where a file lies elsewhere.
    files: BTreeMap<String, Known>,
    /// What model files name as the places of their data, by the digest of the file.
    locations: BTreeMap<String, BTreeSet<String>>,
}

/// Digests files below a root and elsewhere.
#[derive(Debug)]
pub(super) struct Digester {
    root: PathBuf,
    kept: Mutex<Kept>,
}

impl Digester {
    pub(super) fn open(root: &Path) -> Self {
        let text = std::fs::read(root.join(DIRECTORY).join(FILE)).ok();
        // It only saves time: one that cannot be read is made anew.
        let kept = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { root: root.to_owned(), kept: Mutex::new(kept) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is known for the next run.
    pub(super) fn save(&self) -> io::Result<()> {
        let mut kept = self.kept();
        kept.files.retain(|name, _| self.root.join(name).exists());
        let text = serde_json::to_vec(&*kept)?;
        drop(kept);
        dijiang_runtime::write_file(&self.root.join(DIRECTORY).join(FILE), &text)
    }

    /// The files that a model file names as the places of its data; none where it cannot be read.
    fn locations(&self, model: &Path) -> BTreeSet<String> {
        let Ok(digest) = self.file(model) else { return BTreeSet::new() };
        if let Some(known) = self.kept().locations.get(&digest) {
            return known.clone();
        }
        let found = locations(model).unwrap_or_default();
        self.kept().locations.insert(digest, found.clone());
        found
    }

    /// The digest of a file's contents.
    pub(super) fn file(&self, path: &Path) -> io::Result<String> {
        let name = match path.strip_prefix(&self.root) {
            Ok(below) => below.to_string_lossy().into_owned(),
            Err(_) => std::path::absolute(path)?.to_string_lossy().into_owned(),
        };
        let now = SystemTime::now();
        let mut file = regular::open(path)?;
        let before = file.metadata()?;
        let known = self.kept().files.get(&name).cloned();
        if let Some(known) = known.filter(|known| Known::of(&before, known.digest.clone()) == *known) {
            return Ok(known.digest);
        }
        let digest = digest(&mut file)?;
        let found = Known::of(&before, digest.clone());
        if found.is_settled(now) && Known::of(&file.metadata()?, digest.clone()) == found {
            self.kept().files.insert(name, found);
        }
        Ok(digest)
    }

    /// The digests of a file, called `label`, or of the files in a directory, below it. Of a bundle they are those of
    /// the model.
    pub(super) fn files(&self, label: &str, path: &Path) -> Found {
        let listed = match path.is_dir() {
            true if path.join(MANIFEST).is_file() => model_files::paths(path),
            true => Listing::of(path),
            false => Ok(vec![path.to_owned()]),
        };
        match listed {
            Ok(found) => self.listed(label, path, &found),
            Err(e) => unlisted(label, e),
        }
    }

    /// The digests of what a conversion reads of a source.
    pub(super) fn source(&self, label: &str, path: &Path) -> Found {
        // A file is called as it is, and what lies beside it below that.
        let base = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        match source::reads(path, |graph| self.locations(graph)) {
            Ok(found) => {
                let (itself, beside): (Vec<PathBuf>, Vec<PathBuf>) =
                    found.into_iter().partition(|file| file == path);
                let mut digests = self.listed(label, path, &itself);
                digests.extend(self.listed(label, base, &beside));
                digests
            }
            Err(e) => unlisted(label, e),
        }
    }

    fn listed(&self, label: &str, base: &Path, files: &[PathBuf]) -> Found {
        let of = |file: &PathBuf| {
            let below = file.strip_prefix(base).unwrap_or(Path::new("")).to_string_lossy();
            let name =
                [label, &below].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/");
            (name, self.file(file).map_err(unreadable))
        };
        files.par_iter().map(of).collect()
    }
}

fn unreadable(error: impl Display) -> String {
    format!("cannot be read: {error}")
}

fn unlisted(label: &str, error: impl Display) -> Found {
    Found::from([(label.to_owned(), Err(unreadable(error)))])
}

fn digest(file: &mut File) -> io::Result<String> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The regular files below a directory, without hidden ones and without links that lead nowhere.
#[derive(Debug, Default)]
struct Listing {
    found: Vec<PathBuf>,
    /// The directories that are open, by device and inode: a link back to one of them holds nothing more.
    open: Vec<(u64, u64)>,
}

impl Listing {
    fn of(directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut listing = Self::default();
        listing.list(directory, &directory.metadata()?)?;
        Ok(listing.found)
    }

    fn list(&mut self, directory: &Path, itself: &Metadata) -> io::Result<()> {
        let identity = (itself.dev(), itself.ino());
        if self.open.contains(&identity) {
            return Ok(());
        }
        if self.open.len() > DEEPEST {
            return Err(io::Error::other("its directories are too deep"));
        }
        self.open.push(identity);
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().first() != Some(&b'.') {
                self.add(entry.path())?;
            }
        }
        self.open.pop();
        Ok(())
    }

    fn add(&mut self, path: PathBuf) -> io::Result<()> {
        // Through links, as whoever reads it does.
        match path.metadata() {
            Ok(there) if there.is_dir() => self.list(&path, &there)?,
            Ok(there) if !there.is_file() => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(_) | Err(_) => self.found.push(path),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::FileTimes;

    /// Files whose last change is long ago, as far as that can be set, are kept: the time of a change cannot.
    fn settle() {
        std::thread::sleep(TICK * 2);
    }

    #[test]
    fn contents_are_digested_and_not_read_twice() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(home.path().join(DIRECTORY)).expect("it is made");
        let path = home.path().join("a");
        std::fs::write(&path, "one").expect("it is written");
        let digester = Digester::open(home.path());
        let one = digester.file(&path).expect("it is read");
        assert_eq!(one, dijiang_format::digest::digest(b"one"));
        assert!(digester.kept().files.is_empty(), "it may still change unseen");
        settle();
        digester.file(&path).expect("it is read");
        digester.save().expect("it is saved");
        // A known file is not read: what stands in its entry is believed.
        let again = Digester::open(home.path());
        again.kept().files.get_mut("a").expect("it is known").digest = "believed".to_owned();
        assert_eq!(again.file(&path).expect("it is there"), "believed");
        // The same size and the same time of modification, but not the same.
        let old = path.metadata().expect("it is there").modified().expect("a time");
        std::fs::write(&path, "two").expect("it is written");
        let file = File::options().write(true).open(&path).expect("it opens");
        file.set_times(FileTimes::new().set_modified(old)).expect("it is set");
        assert_eq!(again.file(&path).expect("it is read"), dijiang_format::digest::digest(b"two"));
    }

    #[test]
    fn directories_are_listed_without_what_is_hidden() {
        let home = tempfile::tempdir().expect("a directory");
        for (name, text) in [("m/a", "1"), ("m/b/c", "2"), ("m/.git/d", "3")] {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("it is made");
            std::fs::write(path, text).expect("it is written");
        }
        let digester = Digester::open(home.path());
        let names = |label: &str, name: &str| -> Vec<String> {
            digester.files(label, &home.path().join(name)).into_keys().collect()
        };
        assert_eq!(names("source", "m"), ["source/a", "source/b/c"]);
        assert_eq!(names("", "m"), ["a", "b/c"]);
        assert_eq!(names("text", "m/a"), ["text"]);
        let missing = digester.files("gone", &home.path().join("gone"));
        let reason = missing["gone"].as_ref().expect_err("it is not there");
        assert!(reason.starts_with("cannot be read: "), "{missing:?}");
        // What training runs keep in a bundle is no part of it.
        std::fs::write(home.path().join("m").join(MANIFEST), "{}").expect("it is written");
        assert_eq!(names("", "m"), ["a", MANIFEST]);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("a"), "1").expect("it is written");
        std::os::unix::fs::symlink(home.path(), home.path().join("loop")).expect("it is made");
        std::os::unix::fs::symlink("nowhere", home.path().join("lost")).expect("it is made");
        let pipe = home.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("it runs");
        assert!(made.success());
        let digester = Digester::open(home.path());
        let found = digester.files("source", home.path());
        assert_eq!(found.keys().collect::<Vec<_>>(), ["source/a"]);
        let refused = digester.files("text", &pipe);
        let reason = "cannot be read: it is a pipe, a socket or a device, expected a regular file";
        assert_eq!(refused["text"], Err(reason.to_owned()));
    }

    #[test]
    fn what_is_too_deep_has_no_digest() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(home.path().join("a/".repeat(DEEPEST + 1))).expect("it is made");
        let found = Digester::open(home.path()).files("source", home.path());
        assert_eq!(found["source"], Err("cannot be read: its directories are too deep".to_owned()));
    }
}
