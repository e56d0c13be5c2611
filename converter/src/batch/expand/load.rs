//! Files of jobs, each once, with those that they include before them.

use super::draft::are_whole;
use super::paths;
use crate::batch::document::{self, Entry, MAX_BYTES, Mistake, Mistakes, Node, Value, Wrong};
use crate::batch::schema;
use crate::report::message::shown;
use crate::report::outcome::Place;
use dijiang_format::place::NOTHING;
use std::collections::HashMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Files that include each other in a row.
const MAX_INCLUDES: usize = 32;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// In the order of their jobs.
    pub(super) files: Vec<JobsFile>,
    /// Whether nothing is wrong that hides a job, or what it is called.
    pub(super) is_complete: bool,
}

/// One file: what of it has the shape of the table of keys.
#[derive(Debug)]
pub(super) struct JobsFile {
    pub(super) root: Rc<Node>,
    /// Its own and those of what it includes, the nearest first.
    pub(super) defaults: Vec<Rc<Node>>,
}

/// The files of a plan.
pub(super) fn load(file: &Path, mistakes: &mut Mistakes) -> Loaded {
    let loaded = Loaded { files: Vec::new(), is_complete: true };
    let mut loader = Loader { loaded, open: Vec::new(), done: HashMap::new(), bytes: 0, nodes: 0, mistakes };
    let start = Place { file: file.to_owned(), line: 1, column: 1 };
    loader.file(file, &start);
    loader.loaded
}

struct Loader<'a> {
    loaded: Loaded,
    /// The files that include the one that is read, by their real paths.
    open: Vec<PathBuf>,
    /// What was read, with its defaults.
    done: HashMap<PathBuf, Vec<Rc<Node>>>,
    /// Bytes and nodes of all files, which are bound together.
    bytes: u64,
    nodes: usize,
    mistakes: &'a mut Mistakes,
}

impl Loader<'_> {
    /// Reads a file that is named at a place, and returns its defaults.
    fn file(&mut self, file: &Path, named: &Place) -> Vec<Rc<Node>> {
        let defaults = self.defaults(file, named);
        let defaults = self.mistakes.note(defaults);
        self.loaded.is_complete &= defaults.is_some();
        defaults.unwrap_or_default()
    }

    fn defaults(&mut self, file: &Path, named: &Place) -> Result<Vec<Rc<Node>>, Mistake> {
        let real = file.canonicalize().map_err(|error| unreadable(file, &error, named))?;
        if let Some(defaults) = self.done.get(&real) {
            return Ok(defaults.clone());
        }
        if let Some(mistake) = self.too_deep(file, &real, named) {
            return Err(mistake);
        }
        let root = self.read(file, named).inspect_err(|_| {
            // It is told once.
            self.done.insert(real.clone(), Vec::new());
        })?;
        self.open.push(real.clone());
        let defaults = self.take(&root);
        self.open.pop();
        self.done.insert(real, defaults.clone());
        Ok(defaults)
    }

    fn too_deep(&self, file: &Path, real: &PathBuf, named: &Place) -> Option<Mistake> {
        let shown = shown(&file.display().to_string());
        if self.open.contains(real) {
            let found = format!(
                "`{shown}` includes itself{}",
                if self.open.last() == Some(real) { "" } else { " through others" }
            );
            let hint = "move what both need to a file that includes neither";
            return Some(Wrong::other(found, "files that do not", hint).at(named.clone()));
        }
        (self.open.len() == MAX_INCLUDES).then(|| {
            let found = format!("`{shown}` is included through {MAX_INCLUDES} files");
            Wrong::other(found, "fewer", "name the files in one list").at(named.clone())
        })
    }

    fn read(&mut self, file: &Path, named: &Place) -> Result<Rc<Node>, Mistake> {
        let at = |line, column| Place { file: file.to_owned(), line, column };
        let bytes = bytes(file, MAX_BYTES - self.bytes).map_err(|error| unreadable(file, &error, named))?;
        self.bytes += bytes.len() as u64;
        if self.bytes >= MAX_BYTES {
            return Err(Wrong::Large { most: MAX_BYTES }.at(named.clone()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = before.split(|byte| *byte == b'\n').count();
            let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
            Wrong::NotText(bytes[before.len()]).at(at(line, column))
        })?;
        document::parse(file, text, &mut self.nodes)?.ok_or_else(|| {
            let hint = "`dijiang batch --schema` describes the file";
            Wrong::other("an empty file", "`version: 1` and jobs", hint).at(at(1, 1))
        })
    }

    /// Takes the jobs of a document, and returns its defaults.
    fn take(&mut self, written: &Rc<Node>) -> Vec<Rc<Node>> {
        let Some(root) = schema::check(written, &schema::FILE, self.mistakes) else {
            self.loaded.is_complete = false;
            return Vec::new();
        };
        let mut defaults: Vec<Rc<Node>> = root.get("defaults").into_iter().cloned().collect();
        let includes = root.get("include").map(|list| list.items()).unwrap_or_default();
        let mut below = Vec::new();
        for include in includes {
            let Some(text) = include.text() else { continue };
            let theirs = self.file(&paths::resolved(include.file(), text), &include.place());
            // Of two files that are included, the later one's defaults stand above.
            below.splice(0..0, theirs);
        }
        defaults.extend(below);
        // Each once, however often a file is included.
        let mut seen = std::collections::HashSet::new();
        defaults.retain(|node| seen.insert(Rc::as_ptr(node)));
        self.loaded.is_complete &= has_all_jobs(written, &root, &defaults);
        self.loaded.files.push(JobsFile { root, defaults: defaults.clone() });
        defaults
    }
}

/// Whether what is left of a file has every job that was written, under its name.
fn has_all_jobs(written: &Node, left: &Node, defaults: &[Rc<Node>]) -> bool {
    let holds_jobs = |entry: &&Entry| {
        let is_other = ["version", "defaults"].contains(&&*entry.key);
        !is_other && !matches!(entry.node.value, Value::Scalar(_))
    };
    let keys = |root: &Node| root.entries().iter().filter(holds_jobs).count();
    let jobs = |root: &Node| root.get("jobs").map_or(0, |list| list.items().len());
    let is_named = |job: &Rc<Node>| job.get("name").is_some();
    let are_named = left.get("jobs").is_none_or(|list| list.items().iter().all(is_named));
    // Jobs of a matrix are named after what they are made of.
    let is_expanded = left.get("matrix").is_none_or(|matrix| matrix.is_whole() && are_whole(defaults));
    keys(written) == keys(left) && jobs(written) == jobs(left) && are_named && is_expanded
}

fn unreadable(file: &Path, error: &std::io::Error, named: &Place) -> Mistake {
    let reason = match error.kind() {
        ErrorKind::NotFound => NOTHING.to_owned(),
        _ => error.to_string(),
    };
    let wrong = match named.file == *file {
        true => Wrong::NoFile { reason },
        false => Wrong::Unreadable { file: shown(&file.display().to_string()), reason },
    };
    wrong.at(named.clone())
}

/// At most so many bytes and one of a file.
fn bytes(file: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    // Others are endless, or wait for somebody to write.
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}
