//! What is wrong with a document, each with its place, what was found and what was expected.

use crate::report::message::{one_line, shown};
use crate::report::outcome::Place;
use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

/// Something wrong at a place.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", self.at(), self.told())]
pub struct Mistake {
    pub place: Place,
    pub wrong: Box<Wrong>,
}

impl Mistake {
    /// The place, but for a file that cannot be read: it has no lines.
    pub fn line(&self) -> Option<&Place> {
        (!matches!(*self.wrong, Wrong::NoFile { .. })).then_some(&self.place)
    }

    /// What is wrong, in one line.
    pub fn told(&self) -> String {
        one_line(&self.wrong.to_string())
    }

    fn at(&self) -> String {
        let file = || self.place.file.display().to_string();
        self.line().map_or_else(file, Place::to_string)
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("{reason}, expected a file of jobs (hint: `ls` beside it, then name one that is there)")]
    NoFile { reason: String },
    #[error(
        "`{file}` cannot be read: {reason}, expected a file of jobs (hint: `ls` beside it, then name one that is there)"
    )]
    Unreadable { file: String, reason: String },
    #[error(
        "the files hold more than {most} bytes, expected fewer (hint: write a matrix, or split the file)"
    )]
    Large { most: u64 },
    #[error("byte {0:#04x} is not UTF-8, expected text (hint: save the file as UTF-8)")]
    NotText(u8),
    #[error("no YAML: {0}, expected a map of keys (hint: `dijiang batch --schema` describes the file)")]
    Yaml(String),
    #[error("{found}, expected {expected} (hint: {hint})")]
    Other { found: String, expected: String, hint: String },
    #[error(
        "key `{}` stands here again, first in line {first}, expected it once (hint: keep one of the two)",
        shown(key)
    )]
    DuplicateKey { key: String, first: u32 },
    #[error("unknown key `{}` of {owner}, expected one of {} (hint: {})", shown(key), known.join(", "), guess(key, known))]
    UnknownKey { key: String, owner: String, known: Vec<String> },
    #[error("{what} `{}` is not known, expected {expected} (hint: {})", shown(name), guess(name, known))]
    UnknownName { what: &'static str, name: String, expected: String, known: Vec<String> },
    #[error("{found}, expected {expected} for `{key}` (hint: `dijiang batch --schema` describes each key)")]
    Kind { found: String, expected: String, key: String },
    #[error(
        "{owner} has no `{key}`, expected {expected} (hint: `dijiang batch --schema` describes each key)"
    )]
    Missing { owner: String, key: &'static str, expected: String },
    #[error("{}: {reason}, expected {expected} (hint: {hint})", shown(&path.display().to_string()))]
    Path { path: PathBuf, reason: String, expected: &'static str, hint: String },
    #[error(
        "step {command}: {}, expected what the command takes (hint: `dijiang {command} --help` lists it)",
        one_line(reason)
    )]
    Option { command: &'static str, reason: String },
    #[error("{}", hinted(reason))]
    Told { reason: String },
    #[error("{what} `{}` stands already at {first}, expected one of each (hint: {hint})", shown(name))]
    Twice { what: &'static str, name: String, first: Place, hint: &'static str },
}

impl Wrong {
    pub(crate) fn at(self, place: Place) -> Mistake {
        Mistake { place, wrong: Box::new(self) }
    }

    pub(crate) fn twice(what: &'static str, name: &str, first: &Place, hint: &'static str) -> Self {
        Self::Twice { what, name: name.to_owned(), first: first.clone(), hint }
    }

    /// For what is said in one place only.
    pub(crate) fn other(
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Other { found: found.into(), expected: expected.into(), hint: hint.into() }
    }
}

/// All that is wrong with a document and those it includes, each once.
#[derive(Debug, Default)]
pub struct Mistakes {
    list: Vec<Mistake>,
    // An alias is read wherever it stands, and what it names is wrong once.
    said: HashSet<String>,
}

/// More are not kept: a generated file has one mistake ten thousand times.
const MOST: usize = 50;

impl Mistakes {
    /// Whether more would not be kept.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() == MOST
    }

    pub(crate) fn add(&mut self, mistake: Mistake) {
        if !self.is_full() && self.said.insert(mistake.to_string()) {
            self.list.push(mistake);
        }
    }

    /// What was found, or what is wrong with it.
    pub(crate) fn note<T>(&mut self, found: Result<T, Mistake>) -> Option<T> {
        found.map_err(|mistake| self.add(mistake)).ok()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are so far.
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    /// All of them in the order of their places.
    pub(crate) fn sorted(mut self) -> Self {
        let place = |mistake: &Mistake| {
            let Place { file, line, column } = &mistake.place;
            (file.clone(), *line, *column)
        };
        self.list.sort_by_key(place);
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.list.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.list.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// What a part of the program says of a file that a key names, which may have a hint of its own.
fn hinted(reason: &str) -> String {
    match reason.contains("hint: ") {
        true => reason.to_owned(),
        false => format!("{reason} (hint: correct it, then `dijiang batch FILE --check`)"),
    }
}

/// The known name that is the likeliest meant, with what to type next.
fn guess(name: &str, known: &[String]) -> String {
    match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`dijiang batch --schema` lists what there is".to_owned(),
    }
}

/// The name that differs least, where it differs in a third of its letters at most.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 100;
    if name.len() > LONGEST {
        return None;
    }
    let name = name.to_lowercase();
    let most = name.chars().count().div_ceil(3);
    let distances = known.map(|known| (strsim::osa_distance(&name, known), known));
    distances
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["recipe", "target", "dtype", "steps"];
        let nearest = |name| nearest(name, known.into_iter());
        assert_eq!(nearest("recpie"), Some("recipe"));
        assert_eq!(nearest("Targets"), Some("target"));
        assert_eq!(nearest("step"), Some("steps"));
        assert_eq!(nearest("threshold"), None);
        assert_eq!(nearest(&"recipe".repeat(100)), None);
    }
}
