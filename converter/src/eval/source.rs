//! The files of tasks: lines with their numbers, and fields that say where they stand when they are wrong.

use serde_json::Value;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A file is not that of the task. One line each, with the file, the line and the field.
#[derive(Debug, thiserror::Error)]
pub enum TaskFileError {
    #[error("{}: {source} (hint: --task {task} takes {format})", path.display())]
    Io { path: PathBuf, source: std::io::Error, task: String, format: &'static str },
    #[error("{}: line {line}: it is not UTF-8 text (hint: --task {task} takes {format})", path.display())]
    NotText { path: PathBuf, line: usize, task: String, format: &'static str },
    #[error("{}: it holds no questions (hint: --task {task} takes {format})", path.display())]
    Empty { path: PathBuf, task: String, format: &'static str },
    #[error(
        "{}: line {line}: {field} is {found}, expected {expected} (hint: --task {task} takes {format})",
        path.display()
    )]
    Field {
        path: PathBuf,
        line: usize,
        /// Between backticks where it has a name.
        field: Box<str>,
        found: Box<str>,
        expected: Box<str>,
        task: Box<str>,
        format: &'static str,
    },
    #[error("{}: the directory holds none of {names} (hint: --task {task} takes {format})", path.display())]
    NoFile { path: PathBuf, names: String, task: String, format: &'static str },
}

/// A task's name and what its file holds, as errors tell them.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) task: String,
    pub(super) format: &'static str,
}

/// A text file of a task.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) about: About,
}

/// A place in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    path: &'a Path,
    pub(super) line: usize,
    about: &'a About,
}

impl At<'_> {
    /// What is wrong there.
    pub(super) fn wrong(&self, field: &str, found: impl Display, expected: impl Display) -> TaskFileError {
        TaskFileError::Field {
            path: self.path.to_owned(),
            line: self.line,
            field: field.into(),
            found: found.to_string().into(),
            expected: expected.to_string().into(),
            task: self.about.task.as_str().into(),
            format: self.about.format,
        }
    }
}

impl Source {
    pub(super) fn read(path: &Path, about: &About) -> Result<Self, TaskFileError> {
        let About { task, format } = about.clone();
        let path = path.to_owned();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(TaskFileError::Io { path, source, task, format }),
        };
        match String::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => Err(TaskFileError::Empty { path, task, format }),
            Ok(text) => Ok(Self { path, text, about: about.clone() }),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = valid.split(|byte| *byte == b'\n').count();
                Err(TaskFileError::NotText { path, line, task, format })
            }
        }
    }

    pub(super) fn at(&self, line: usize) -> At<'_> {
        At { path: &self.path, line, about: &self.about }
    }

    /// Lines that hold something, with their places.
    pub(super) fn lines(&self) -> impl Iterator<Item = (At<'_>, &str)> {
        let lines = self.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines.map(|(at, line)| (self.at(at + 1), line))
    }

    /// A JSON object of every line.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<Record<'_>, TaskFileError>> {
        self.lines().map(|(at, line)| Record::parse(at, line))
    }
}

/// A JSON object and where it stands.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) at: At<'a>,
    value: Value,
}

impl<'a> Record<'a> {
    pub(super) fn parse(at: At<'a>, text: &str) -> Result<Self, TaskFileError> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| at.wrong("it", format!("no JSON ({e})"), "an object"))?;
        match value.is_object() {
            true => Ok(Self { at, value }),
            false => Err(at.wrong("it", found(Some(&value)), "an object")),
        }
    }

    /// A field by its path: `question.choices.0.text`.
    fn find(&self, field: &str) -> Option<&Value> {
        field.split('.').try_fold(&self.value, |value, part| match value {
            Value::Array(all) => all.get(part.parse::<usize>().ok()?),
            other => other.get(part),
        })
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.find(field).is_some_and(|value| !value.is_null() && *value != "")
    }

    pub(super) fn wrong(&self, field: &str, expected: impl Display) -> TaskFileError {
        self.at.wrong(&format!("`{field}`"), found(self.find(field)), expected)
    }

    /// Text, which may be empty.
    pub(super) fn text(&self, field: &str) -> Result<&str, TaskFileError> {
        self.find(field).and_then(Value::as_str).ok_or_else(|| self.wrong(field, "text"))
    }

    /// Text with something in it.
    pub(super) fn filled(&self, field: &str) -> Result<&str, TaskFileError> {
        let text = self.text(field)?;
        if text.trim().is_empty() { Err(self.wrong(field, "text with something in it")) } else { Ok(text) }
    }

    /// How many a list holds.
    pub(super) fn count(&self, field: &str) -> Result<usize, TaskFileError> {
        let list = self.find(field).and_then(Value::as_array).filter(|list| !list.is_empty());
        list.map(Vec::len).ok_or_else(|| self.wrong(field, "a list with something in it"))
    }

    /// A list of texts.
    pub(super) fn texts(&self, field: &str) -> Result<Vec<&str>, TaskFileError> {
        (0..self.count(field)?).map(|at| self.text(&format!("{field}.{at}"))).collect()
    }

    /// A whole number from `least` to `most`, which may be written as text; counted from 0.
    pub(super) fn number(&self, field: &str, [least, most]: [usize; 2]) -> Result<usize, TaskFileError> {
        let number = match self.find(field) {
            Some(Value::Number(number)) => number.as_u64().map(|number| number as usize),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        let number = number.ok_or_else(|| self.wrong(field, range(least, most)))?;
        Ok(number - least)
    }

    /// One of some words, by its place among them.
    pub(super) fn word(&self, field: &str, words: &[&str]) -> Result<usize, TaskFileError> {
        let word = self.find(field).and_then(Value::as_str);
        let place = word.and_then(|word| words.iter().position(|known| *known == word));
        place.ok_or_else(|| self.wrong(field, one_of(words)))
    }

    pub(super) fn flag(&self, field: &str) -> Result<bool, TaskFileError> {
        self.find(field).and_then(Value::as_bool).ok_or_else(|| self.wrong(field, "true or false"))
    }
}

/// `1 or 2`, `0 to 4`.
pub(super) fn range(least: usize, most: usize) -> String {
    match most - least {
        0 => least.to_string(),
        1 => format!("{least} or {most}"),
        _ => format!("{least} to {most}"),
    }
}

/// `a, b or c`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        _ => words.concat(),
    }
}

/// A value in a few words.
fn found(value: Option<&Value>) -> String {
    match value {
        None => "missing".to_owned(),
        Some(Value::Null) => "null".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "empty".to_owned(),
        Some(Value::String(text)) => short(text),
        Some(Value::Array(list)) if list.is_empty() => "an empty list".to_owned(),
        Some(Value::Array(_)) => "a list".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(number @ (Value::Number(_) | Value::Bool(_))) => number.to_string(),
    }
}

/// Text between quotes, and no more of it than a line of errors holds.
pub(super) fn short(text: &str) -> String {
    const MOST: usize = 24;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    let more = if text.chars().nth(MOST).is_some() { "…" } else { "" };
    format!("\"{line}{more}\"")
}

/// The labels of questions, one on each line of a file of its own, as places among the allowed ones.
#[derive(Debug)]
pub(super) struct Labels {
    source: Source,
    allowed: [usize; 2],
}

impl Labels {
    /// Beside `valid.jsonl` lies `valid-labels.lst`; `None` where it does not.
    pub(super) fn beside(source: &Source, allowed: [usize; 2]) -> Result<Option<Self>, TaskFileError> {
        let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
        let path = source.path.with_file_name(format!("{stem}-labels.lst"));
        match path.exists() {
            true => Ok(Some(Self { source: Source::read(&path, &source.about)?, allowed })),
            false => Ok(None),
        }
    }

    /// That of a question, from 0.
    pub(super) fn of(&self, question: usize) -> Result<usize, TaskFileError> {
        let [least, most] = self.allowed;
        let end = self.source.at(self.source.text.lines().count() + 1);
        let Some((at, text)) = self.source.lines().nth(question) else {
            return Err(end.wrong("the label", "missing", range(least, most)));
        };
        let label = text.trim().parse().ok().filter(|label| (least..=most).contains(label));
        let label = label.ok_or_else(|| at.wrong("the label", short(text.trim()), range(least, most)))?;
        Ok(label - least)
    }
}

/// The label of a question: of its line, or of the file beside it.
pub(super) fn label(
    record: &Record<'_>,
    field: &str,
    beside: Option<&Labels>,
    (question, allowed): (usize, [usize; 2]),
) -> Result<usize, TaskFileError> {
    match beside {
        Some(labels) if !record.has(field) => labels.of(question),
        _ => record.number(field, allowed),
    }
}
