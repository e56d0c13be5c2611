//! Where bundles and what steps write beside them go: below the root, each in a place of its own, and none in what is
//! read.

use super::job::Made;
use crate::batch::document::{Mistake, Mistakes, Wrong};
use crate::report::outcome::Place;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Notes what is wrong with the places of bundles, and of what steps write beside them.
pub(super) fn check(root: &Path, jobs: &[Made], mistakes: &mut Mistakes) {
    let mut places = Places { real: HashMap::new() };
    let root = places.real(root);
    let mut outputs: HashMap<PathBuf, &Made> = HashMap::new();
    for made in jobs.iter().filter(|made| made.has_output) {
        let (path, place) = (&made.job.bundle, &made.output_place);
        let Some(real) = places.below(&root, path, place, mistakes) else { continue };
        if let Some(first) = outputs.insert(real, made) {
            let hint = "give one of them an `out` of its own";
            let name = path.display().to_string();
            mistakes.add(Wrong::twice("the output", &name, &first.output_place, hint).at(place.clone()));
        }
    }
    let known = jobs.iter().filter(|made| !made.job.source.as_os_str().is_empty());
    let sources: HashMap<PathBuf, &Made> = known.map(|made| (places.real(&made.job.source), made)).collect();
    check_nesting(&root, &outputs, &sources, mistakes);
    let mut written = Written { outputs: &outputs, read: read(&mut places, jobs), files: HashMap::new() };
    for made in jobs {
        check_source(&mut places, made, &outputs, mistakes);
        check_reads(&mut places, made, &outputs, mistakes);
        for step in made.steps.iter() {
            let before = mistakes.count();
            for (path, place) in &step.writes {
                let Some(real) = places.below(&root, path, place, mistakes) else { continue };
                if let Err(wrong) = written.add(path, real, place) {
                    mistakes.add(wrong.at(place.clone()));
                }
            }
            // Nobody needs a directory that is not to be written into.
            let is_fine = mistakes.count() == before;
            for (path, place) in step.directories.iter().filter(|_| is_fine) {
                mistakes.note(is_there(path, place));
            }
        }
    }
}

/// Steps make no directories, and write at their end.
fn is_there(directory: &Path, place: &Place) -> Result<(), Mistake> {
    if directory.is_dir() {
        return Ok(());
    }
    let (path, reason) = (directory.to_owned(), "there is no such directory".to_owned());
    let hint = format!("`mkdir -p {}`, or name one that is there", directory.display());
    let expected = "a directory, which a step writes into";
    Err(Wrong::Path { path, reason, expected, hint }.at(place.clone()))
}

/// What is read, by its real path, and what that is called: files of jobs, sources, recipes, and what steps read.
fn read(places: &mut Places, jobs: &[Made]) -> HashMap<PathBuf, String> {
    let mut found = HashMap::new();
    for made in jobs {
        let of_steps = made.job.steps.iter().flat_map(|step| &step.reads);
        let steps = of_steps.map(|path| (path, format!("what job `{}` reads", made.job.name)));
        let source = (&made.job.source, format!("the source of job `{}`", made.job.name));
        let file = (&made.job.place.file, "the file of jobs".to_owned());
        for (path, name) in steps.chain([source, file]) {
            found.insert(places.real(path), name);
        }
    }
    found
}

/// What steps write beside bundles.
struct Written<'a> {
    outputs: &'a HashMap<PathBuf, &'a Made>,
    read: HashMap<PathBuf, String>,
    files: HashMap<PathBuf, Place>,
}

impl Written<'_> {
    /// One more, by its real path.
    fn add(&mut self, path: &Path, real: PathBuf, place: &Place) -> Result<(), Wrong> {
        let inside = |reason: String, hint: &str| {
            let (path, hint) = (path.to_owned(), hint.to_owned());
            Err(Wrong::Path { path, reason, expected: "a place of its own", hint })
        };
        if let Some(other) = real.ancestors().find_map(|up| self.outputs.get(up)) {
            let reason = format!("it is inside the output of job `{}`", other.job.name);
            return inside(reason, "write it beside the bundle");
        }
        if let Some(other) = real.ancestors().find_map(|up| self.read.get(up)) {
            return inside(format!("it is inside {other}, or the same"), "write it beside that");
        }
        let name = path.display().to_string();
        match self.files.insert(real, place.clone()) {
            Some(first) => {
                let hint = "give each job a step of its own, with another name";
                Err(Wrong::twice("what a step writes,", &name, &first, hint))
            }
            None => Ok(()),
        }
    }
}

struct Places {
    real: HashMap<PathBuf, PathBuf>,
}

impl Places {
    /// A path with its links followed, as far as it is there.
    fn real(&mut self, path: &Path) -> PathBuf {
        if let Some(real) = self.real.get(path) {
            return real.clone();
        }
        let real = match (path.canonicalize(), path.parent(), path.file_name()) {
            (Ok(real), ..) => real,
            (Err(_), Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
                self.real(parent).join(name)
            }
            _ => path.to_owned(),
        };
        self.real.insert(path.to_owned(), real.clone());
        real
    }

    /// The real place of an output, where it may be one.
    fn below(&mut self, root: &Path, path: &Path, place: &Place, mistakes: &mut Mistakes) -> Option<PathBuf> {
        let dangles = path.is_symlink() && !path.exists();
        let real = self.real(path);
        let reason = match real.strip_prefix(root) {
            _ if dangles => "it is a link that leads nowhere",
            Err(_) => "it is outside the directory of the file",
            Ok(inside) if inside.as_os_str().is_empty() => "it is the directory of the file itself",
            Ok(inside) if inside.starts_with(RECORDS) => "it is where a batch keeps its records",
            Ok(_) => return Some(real),
        };
        let (path, reason) = (path.to_owned(), reason.to_owned());
        let hint = "move the file of jobs up, or the output below it; links are followed".to_owned();
        mistakes.add(Wrong::Path { path, reason, expected: "an output below it", hint }.at(place.clone()));
        None
    }
}

/// The directory of records, below the root.
const RECORDS: &str = ".dijiang-batch";

fn check_nesting(
    root: &Path,
    outputs: &HashMap<PathBuf, &Made>,
    sources: &HashMap<PathBuf, &Made>,
    mistakes: &mut Mistakes,
) {
    let mut ordered: Vec<(&PathBuf, &&Made)> = outputs.iter().collect();
    ordered.sort_by_key(|(real, _)| *real);
    for (real, made) in ordered {
        let wrong = |reason: String, hint: &str| {
            let (path, hint) = (made.job.bundle.clone(), hint.to_owned());
            Wrong::Path { path, reason, expected: "a place of its own", hint }.at(made.output_place.clone())
        };
        if let Some(other) =
            real.ancestors().skip(1).take_while(|up| *up != root).find_map(|up| outputs.get(up))
        {
            let reason = format!("it is inside the output of job `{}`", other.job.name);
            mistakes.add(wrong(reason, "give one of them an `out` beside the other"));
        }
        if let Some(other) = real.ancestors().find_map(|up| sources.get(up)) {
            let reason = format!("it is inside the source of job `{}`", other.job.name);
            mistakes.add(wrong(reason, "give it an `out` beside the source"));
        }
    }
}

fn check_source(
    places: &mut Places,
    made: &Made,
    outputs: &HashMap<PathBuf, &Made>,
    mistakes: &mut Mistakes,
) {
    let real = places.real(&made.job.source);
    // Its own output inside the source was told above; here the source is inside an output.
    let Some(other) = real.ancestors().skip(1).find_map(|up| outputs.get(up)) else { return };
    let reason = format!("it is inside the output of job `{}`", other.job.name);
    let (path, hint) = (made.job.source.clone(), "add the steps to that job".to_owned());
    let expected = "a source that no job writes";
    mistakes.add(Wrong::Path { path, reason, expected, hint }.at(made.source_place.clone()));
}

/// What steps read besides the bundle.
fn check_reads(places: &mut Places, made: &Made, outputs: &HashMap<PathBuf, &Made>, mistakes: &mut Mistakes) {
    for (path, place) in made.steps.iter().flat_map(|step| &step.reads) {
        let real = places.real(path);
        let Some(other) = real.ancestors().find_map(|up| outputs.get(up)) else { continue };
        if made.job.baseline.as_ref() != Some(&other.job.name) {
            let reason = format!("job `{}` writes it", other.job.name);
            let hint = format!("`baseline: {}`, which runs first", other.job.name);
            let expected = "what is there before the job begins";
            mistakes.add(Wrong::Path { path: path.clone(), reason, expected, hint }.at(place.clone()));
        }
    }
}
