//! Files of jobs, each once, with those that they include before them.

use super::paths;
use crate::batch::document::{self, MAX_BYTES, Mistake, Mistakes, Node, Wrong};
use crate::batch::schema;
use crate::report::message::shown;
use crate::report::outcome::Place;
use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Files that include each other in a row.
const MAX_INCLUDES: usize = 32;

/// One file, which has the shape of the table of keys.
#[derive(Debug)]
pub(super) struct JobsFile {
    pub(super) root: Rc<Node>,
    /// Its own and those of what it includes, the nearest first.
    pub(super) defaults: Vec<Rc<Node>>,
}

/// The files of a plan, in the order of their jobs.
pub(super) fn load(file: &Path, mistakes: &mut Mistakes) -> Vec<JobsFile> {
    let mut loader =
        Loader { files: Vec::new(), open: Vec::new(), done: HashMap::new(), bytes: 0, nodes: 0, mistakes };
    let start = Place { file: file.to_owned(), line: 1, column: 1 };
    loader.file(file, &start);
    loader.files
}

struct Loader<'a> {
    files: Vec<JobsFile>,
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
        let real = match file.canonicalize() {
            Ok(real) => real,
            Err(error) => {
                self.mistakes.add(unreadable(file, &error, named));
                return Vec::new();
            }
        };
        if let Some(defaults) = self.done.get(&real) {
            return defaults.clone();
        }
        if let Some(mistake) = self.too_deep(file, &real, named) {
            self.mistakes.add(mistake);
            return Vec::new();
        }
        self.open.push(real.clone());
        let read = self.read(file, named);
        let defaults = self.mistakes.note(read).flatten().map(|root| self.take(root)).unwrap_or_default();
        self.open.pop();
        self.done.insert(real, defaults.clone());
        defaults
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

    fn read(&mut self, file: &Path, named: &Place) -> Result<Option<Rc<Node>>, Mistake> {
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
        let root = document::parse(file, text, &mut self.nodes)?;
        if root.is_none() {
            let hint = "`dijiang batch --schema` describes the file";
            return Err(Wrong::other("an empty file", "`version: 1` and jobs", hint).at(at(1, 1)));
        }
        Ok(root)
    }

    /// Takes the jobs of a document, and returns its defaults.
    fn take(&mut self, root: Rc<Node>) -> Vec<Rc<Node>> {
        schema::check(&root, &schema::FILE, self.mistakes);
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
        self.files.push(JobsFile { root, defaults: defaults.clone() });
        defaults
    }
}

fn unreadable(file: &Path, error: &std::io::Error, named: &Place) -> Mistake {
    let file = shown(&file.display().to_string());
    let reason = error.to_string();
    Wrong::Unreadable { file, reason }.at(named.clone())
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
