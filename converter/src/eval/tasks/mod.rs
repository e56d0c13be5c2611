//! The tasks: one per file, in the prompts of lm-evaluation-harness, from files as their publishers give them.

use super::answers::Metric;
use super::question::Question;
use super::source::Labels;
use super::source::{About, Record, Source, TaskFileError, label};
use std::path::{Path, PathBuf};

mod arc_challenge;
mod arc_easy;
mod boolq;
mod copa;
mod hellaswag;
mod lambada;
mod lines;
mod logiqa;
mod mmlu;
mod piqa;
mod race;
mod siqa;
mod winogrande;
mod wsc;
mod wsc273;

/// A task.
#[derive(Debug)]
pub struct Task {
    pub name: &'static str,
    /// Of the harness's description whose prompts these are.
    pub version: Option<u32>,
    pub metrics: &'static [Metric],
    /// What its file holds, in a few words.
    format: &'static str,
    /// What its publisher calls the file, which is looked for in a directory; none of a task that reads directories.
    files: &'static [&'static str],
    read: fn(&Input<'_>) -> Result<Vec<Question>, TaskFileError>,
}

/// Every task with a name, in the order of their names. Any other name is that of [`lines`].
pub const TASKS: &[Task] = &[
    arc_challenge::TASK,
    arc_easy::TASK,
    boolq::TASK,
    copa::TASK,
    hellaswag::TASK,
    lambada::TASK,
    logiqa::TASK,
    mmlu::TASK,
    piqa::TASK,
    race::TASK,
    siqa::TASK,
    winogrande::TASK,
    wsc::TASK,
    wsc273::TASK,
];

const ACC: &[Metric] = &[Metric::Acc];
const ACC_NORM: &[Metric] = &[Metric::Acc, Metric::AccNorm];

/// How much of a task is asked.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Questions, at most; of every subject, where a task has several.
    pub limit: usize,
    /// Solved questions before each, where a task has such.
    pub shots: usize,
}

/// What a task reads.
#[derive(Debug)]
struct Input<'a> {
    path: &'a Path,
    about: About,
    extent: Extent,
}

/// A task with its questions.
#[derive(Debug)]
pub struct Asked {
    /// As the call has it.
    pub name: String,
    pub version: Option<u32>,
    pub metrics: &'static [Metric],
    pub questions: Vec<Question>,
}

/// The questions of a task's file or directory.
pub fn read(name: &str, path: &Path, extent: Extent) -> Result<Asked, TaskFileError> {
    let task = TASKS.iter().find(|task| task.name == name).unwrap_or(&lines::TASK);
    let about = About { task: name.to_owned(), format: task.format };
    let path = task.file(path, &about)?;
    let questions = (task.read)(&Input { path: &path, about: about.clone(), extent })?;
    match questions.is_empty() {
        true => Err(TaskFileError::Empty { path, task: about.task, format: about.format }),
        false => Ok(Asked { name: about.task, version: task.version, metrics: task.metrics, questions }),
    }
}

impl Task {
    /// In a directory the publisher's file.
    fn file(&self, path: &Path, about: &About) -> Result<PathBuf, TaskFileError> {
        if self.files.is_empty() || !path.is_dir() {
            return Ok(path.to_owned());
        }
        let found = self.files.iter().map(|name| path.join(name)).find(|file| file.is_file());
        found.ok_or_else(|| no_file(path, &self.files.join(", "), about))
    }
}

fn no_file(path: &Path, names: &str, about: &About) -> TaskFileError {
    let About { task, format } = about.clone();
    TaskFileError::NoFile { path: path.to_owned(), names: names.to_owned(), task, format }
}

/// A question of every line.
fn of_records(
    input: &Input<'_>,
    question: impl Fn(&Record<'_>) -> Result<Question, TaskFileError>,
) -> Result<Vec<Question>, TaskFileError> {
    let source = Source::read(input.path, &input.about)?;
    source.records().take(input.extent.limit).map(|record| question(&record?)).collect()
}

/// The same, where labels are in the lines or in a file beside it.
fn of_labelled(
    input: &Input<'_>,
    (field, allowed): (&str, [usize; 2]),
    question: impl Fn(&Record<'_>, usize) -> Result<Question, TaskFileError>,
) -> Result<Vec<Question>, TaskFileError> {
    let source = Source::read(input.path, &input.about)?;
    let labels = Labels::beside(&source, allowed)?;
    let one = |(number, record): (usize, Result<Record<'_>, TaskFileError>)| {
        let record = record?;
        let answer = label(&record, field, labels.as_ref(), (number, allowed))?;
        question(&record, answer)
    };
    source.records().take(input.extent.limit).enumerate().map(one).collect()
}

/// The files of a directory with an ending, by the numbers or the names that they have.
fn listed(directory: &Path, ending: &str, about: &About) -> Result<Vec<PathBuf>, TaskFileError> {
    let failed = |source| TaskFileError::Io {
        path: directory.to_owned(),
        source,
        task: about.task.clone(),
        format: about.format,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(ending) && !name.starts_with('.') {
            let stem = name.trim_end_matches(ending).to_owned();
            files.push((stem.parse::<u64>().unwrap_or(u64::MAX), stem, path));
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(no_file(directory, &format!("*{ending}"), about)),
        false => Ok(files.into_iter().map(|(_, _, path)| path).collect()),
    }
}

#[cfg(test)]
mod tests;
