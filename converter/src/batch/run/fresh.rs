//! What of a job is done already.
//!
//! A step is done where its record has the same options, the same contents of all that it read, and the same program.
//! What cannot be read is never the same. The steps before the first one that is not done stay done if the bundle is, byte
//! by byte, what the last of them left; otherwise the job begins anew.

use super::digests::{Digester, Found};
use super::engine::{self, Engine};
use super::names::Names;
use super::record::{Digests, Record, StepRecord};
use super::{machine, step};
use crate::batch::plan::{Step, StepCommand};
use crate::recipes;
use std::path::Path;

/// What steps depend on besides their options and files.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) digester: Digester,
    pub(super) engine: Engine,
    /// The digest of the program that runs them.
    pub(super) program: String,
    /// All threads of the batch.
    pub(super) threads: usize,
}

/// What is left to do of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Left {
    /// The steps that are done.
    pub(super) record: Record,
    /// What each step of the plan reads.
    pub(super) reads: Vec<Found>,
    /// Why there is more to do, in one line.
    pub(super) reason: Option<String>,
}

impl Left {
    /// The step to go on with.
    pub(super) fn from(&self) -> usize {
        self.record.steps.len()
    }
}

/// Whether a step changes the bundle.
pub(super) fn writes(command: StepCommand) -> bool {
    match command {
        StepCommand::Convert | StepCommand::Calibrate | StepCommand::Finetune | StepCommand::Quantize => true,
        StepCommand::Verify | StepCommand::Eval | StepCommand::Bench => false,
    }
}

/// Compares a job with its record.
pub(super) fn left(names: &Names<'_>, surroundings: &Surroundings, old: Option<Record>, force: bool) -> Left {
    let steps = &names.job.steps;
    let reads: Vec<Found> = steps.iter().map(|step| contents(names, step, surroundings)).collect();
    let begun = Record::begin(&names.job.name, names.file(), names.bundle(), &surroundings.program);
    let anew = |reason: String| Left { record: begun.clone(), reads: reads.clone(), reason: Some(reason) };
    let Some(old) = old else { return anew("it is new".to_owned()) };
    if force {
        return anew("all is done anew".to_owned());
    }
    if old.version != begun.version {
        return anew(format!("version {} made it, and this is {}", old.version, begun.version));
    }
    if old.program != begun.program {
        return anew(format!("another build of version {} made it", old.version));
    }
    if old.bundle != begun.bundle {
        return anew(format!("its bundle was {}", old.bundle));
    }
    let differs = |at: usize| difference(names, &steps[at], &reads[at], old.steps.get(at));
    let first = (0..steps.len()).find_map(|at| Some((at, differs(at)?)));
    let (done, reason) = match first {
        Some((at, reason)) => (at, Some(reason)),
        None => (steps.len(), None),
    };
    if done == 0 {
        return anew(reason.unwrap_or_else(|| "it has no steps".to_owned()));
    }
    let kept = &old.steps[..done];
    let expected = kept.iter().rev().find_map(|step| step.bundle.as_ref());
    match expected.map(|expected| change(expected, &names.job.bundle, &surroundings.digester)) {
        None => anew(reason.unwrap_or_else(|| "nothing made its bundle".to_owned())),
        // What a later step had made of it is why there is another one now.
        Some(Some(change)) => anew(reason.unwrap_or(change)),
        Some(None) => {
            let record = begun.with(kept.to_vec());
            Left { record, reads, reason }
        }
    }
}

/// Digests of all that a step reads besides the bundle, the version of what it runs in, and the machine where it measures
/// time.
pub(super) fn contents(names: &Names<'_>, step: &Step, surroundings: &Surroundings) -> Found {
    let Surroundings { digester, engine, threads, .. } = surroundings;
    let mut found = Found::new();
    for read in names.reads(step) {
        found.extend(match read.is_source {
            true => digester.source(&read.label, &read.path),
            false => digester.files(&read.label, &read.path),
        });
    }
    let preset = recipes::PRESETS.iter().find(|(name, _)| *name == names.job.recipe);
    if let Some((name, text)) = preset.filter(|_| step.command == StepCommand::Convert) {
        found.insert(format!("recipe {name}"), Ok(dijiang_format::digest::digest(text.as_bytes())));
    }
    if engine::is_used(step) {
        found.insert(engine::NAME.to_owned(), Ok(engine.version().to_owned()));
    }
    if step.command == StepCommand::Bench {
        let threads = step::threads_given(step).unwrap_or(usize::MAX).min(*threads);
        found.insert(machine::NAME.to_owned(), Ok(machine::described(threads)));
    }
    found
}

/// Why a step is to be done, in one line.
fn difference(names: &Names<'_>, step: &Step, reads: &Found, old: Option<&StepRecord>) -> Option<String> {
    let command = step.command.name();
    let Some(old) = old else { return Some(format!("step {command} is not done")) };
    if old.command != command {
        return Some(format!("step {command} stands where {} was", old.command));
    }
    if let Some(reason) = changed(&old.reads, reads) {
        return Some(reason);
    }
    if names.arguments(step) != old.arguments {
        return Some(format!("the options of step {command} changed"));
    }
    let gone = step.writes.iter().find(|path| !path.exists());
    gone.map(|path| format!("{} is gone", names.below_root(path)))
}

/// The first file that is not what it was, and how many there are besides.
fn changed(old: &Digests, new: &Found) -> Option<String> {
    let shown = |name: &str| name.replacen("source/", "source ", 1);
    let is_said = |name: &str| [engine::NAME, machine::NAME].contains(&name);
    let of_new = new.iter().filter_map(|(name, found)| match (old.get(name), found) {
        (_, Err(reason)) => Some(format!("{} {reason}", shown(name)).trim_start().to_owned()),
        (Some(same), Ok(digest)) if same == digest => None,
        (Some(old), Ok(digest)) if is_said(name) => Some(format!("{name} was {old}, and is {digest}")),
        (Some(_), Ok(_)) => Some(format!("{} changed", shown(name))),
        (None, Ok(_)) => Some(format!("{} is new", shown(name))),
    });
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let mut all = of_new.chain(gone.map(|name| format!("{} is gone", shown(name))));
    let first = all.next()?;
    Some(match all.count() {
        0 => first,
        more => format!("{first}, and {more} more"),
    })
}

/// What of the bundle's files is not what a step left. What came to them is no concern of the job.
fn change(expected: &Digests, bundle: &Path, digester: &Digester) -> Option<String> {
    if !bundle.exists() {
        return Some("its bundle is gone".to_owned());
    }
    let mut found = digester.files("", bundle);
    found.retain(|name, digest| expected.contains_key(name) || digest.is_err());
    Some(format!("its bundle is not as it was left: {}", changed(expected, &found)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(files: &[(&str, &str)]) -> Digests {
        files.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect()
    }

    #[test]
    fn the_first_difference_is_told_in_one_line() {
        let old = digests(&[("recipe a.yaml", "1"), ("source/config.json", "2"), ("source/x", "3")]);
        let found = |files: &[(&str, &str)]| -> Found {
            digests(files).into_iter().map(|(name, digest)| (name, Ok(digest))).collect()
        };
        let mut same = found(&[("recipe a.yaml", "1"), ("source/config.json", "2"), ("source/x", "3")]);
        assert_eq!(changed(&old, &same), None);
        let recipe = found(&[("recipe a.yaml", "4"), ("source/config.json", "2"), ("source/x", "3")]);
        assert_eq!(changed(&old, &recipe).as_deref(), Some("recipe a.yaml changed"));
        let several = found(&[("recipe a.yaml", "1"), ("source/config.json", "5"), ("source/y", "3")]);
        assert_eq!(changed(&old, &several).as_deref(), Some("source config.json changed, and 2 more"));
        let gone = found(&[("recipe a.yaml", "1"), ("source/config.json", "2")]);
        assert_eq!(changed(&old, &gone).as_deref(), Some("source x is gone"));
        // What cannot be read is not what it was, whatever was noted of it.
        let reason = "cannot be read: Permission denied";
        same.insert("source/x".to_owned(), Err(reason.to_owned()));
        assert_eq!(changed(&old, &same), Some(format!("source x {reason}")));
        let noted = digests(&[("recipe a.yaml", "1"), ("source/config.json", "2"), ("source/x", reason)]);
        assert_eq!(changed(&noted, &same), Some(format!("source x {reason}")));
    }
}
