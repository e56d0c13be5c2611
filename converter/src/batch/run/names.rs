//! Names in place of paths, for records: the same wherever the plan's root and what it reads lie.

use crate::batch::plan::{Job, Plan, Step, StepCommand};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What stands for the bundle of a job in its record.
pub(super) const BUNDLE: &str = "{bundle}";
/// And for that of its baseline.
pub(super) const BASELINE: &str = "{baseline}";

/// A file or directory that a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) label: String,
    pub(super) path: PathBuf,
    /// Whether it is what is converted.
    pub(super) is_source: bool,
}

/// The names of a job.
#[derive(Debug)]
pub(super) struct Names<'a> {
    pub(super) root: &'a Path,
    pub(super) job: &'a Job,
    /// The bundle of its baseline.
    pub(super) baseline: Option<&'a Path>,
}

impl<'a> Names<'a> {
    pub(super) fn of(plan: &'a Plan, job: &'a Job) -> Self {
        let baseline = job.baseline.as_ref();
        let baseline = baseline.and_then(|name| plan.jobs.iter().find(|other| other.name == *name));
        Self { root: &plan.root, job, baseline: baseline.map(|other| other.bundle.as_path()) }
    }

    /// The bundle, from the root.
    pub(super) fn bundle(&self) -> String {
        self.below_root(&self.job.bundle)
    }

    /// The file that the job stands in, from the root; empty where it lies elsewhere.
    pub(super) fn file(&self) -> String {
        let file = &self.job.place.file;
        match file.strip_prefix(self.root) {
            Ok(below) => below.to_string_lossy().into_owned(),
            // Beside it, without a directory.
            Err(_) if file.parent() == Some(Path::new("")) => file.to_string_lossy().into_owned(),
            Err(_) => String::new(),
        }
    }

    pub(super) fn below_root(&self, path: &Path) -> String {
        path.strip_prefix(self.root).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// What a step reads besides the job's own bundle, each with a name of its own.
    pub(super) fn reads(&self, step: &Step) -> Vec<Read> {
        let converts = step.command == StepCommand::Convert;
        let mut paths: Vec<&Path> = Vec::new();
        paths.extend(converts.then_some(self.job.source.as_path()));
        paths.extend(step.reads.iter().map(PathBuf::as_path));
        paths.extend(self.baseline.filter(|path| step.arguments.iter().any(|a| Path::new(a) == *path)));
        let (mut seen, mut labels) = (BTreeSet::new(), BTreeSet::new());
        let mut reads = Vec::new();
        for path in paths {
            if !path.starts_with(&self.job.bundle) && seen.insert(path) {
                let label = unlike(self.label(path, converts), &mut labels);
                let is_source = converts && path == self.job.source;
                reads.push(Read { label, path: path.to_owned(), is_source });
            }
        }
        reads
    }

    fn label(&self, path: &Path, converts: bool) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match path {
            _ if converts && path == self.job.source => "source".to_owned(),
            _ if converts && path == Path::new(&self.job.recipe) => format!("recipe {}", name(path)),
            _ if Some(path) == self.baseline => "baseline".to_owned(),
            _ if path.starts_with(self.root) => self.below_root(path),
            _ => name(path),
        }
    }

    /// The arguments of a step, with names.
    pub(super) fn arguments(&self, step: &Step) -> Vec<String> {
        let reads = self.reads(step);
        step.arguments.iter().map(|argument| self.named(argument, &reads)).collect()
    }

    /// What a step printed, with names in it.
    pub(super) fn result(&self, step: &Step, mut result: Value) -> Value {
        let reads = self.reads(step);
        self.rename(&mut result, &reads);
        result
    }

    fn rename(&self, value: &mut Value, reads: &[Read]) {
        match value {
            Value::String(text) => *text = self.named(text, reads),
            Value::Array(items) => items.iter_mut().for_each(|item| self.rename(item, reads)),
            Value::Object(entries) => entries.values_mut().for_each(|item| self.rename(item, reads)),
            _ => {}
        }
    }

    /// `PATH`, `NAME=PATH` or anything else.
    fn named(&self, text: &str, reads: &[Read]) -> String {
        let (head, path) = match text.split_once('=') {
            Some((head, path)) if !head.contains('/') => (format!("{head}="), path),
            _ => (String::new(), text),
        };
        if path.is_empty() {
            return text.to_owned();
        }
        let path = Path::new(path);
        let read = reads.iter().find(|read| read.path == path);
        let name = match read {
            _ if path == self.job.bundle => BUNDLE.to_owned(),
            _ if Some(path) == self.baseline => BASELINE.to_owned(),
            Some(read) => format!("{{{}}}", read.label),
            None => self.below_root(path),
        };
        head + &name
    }
}

/// The label, or one with a number.
fn unlike(label: String, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|n| format!("{label} ({n})"));
    let free = std::iter::once(label.clone()).chain(numbered).find(|label| !taken.contains(label));
    let free = free.unwrap_or(label);
    taken.insert(free.clone());
    free
}
