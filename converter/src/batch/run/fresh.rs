//! What of a job is done already.
//!
//! A step is done where its record has the same options, the same contents of all that it read, and the same version of
//! this program. The steps before the first one that is not done stay done if the bundle is, byte by byte, what the
//! last of them left; otherwise the job begins anew.

use super::digests::Digester;
use super::engine::{self, Engine};
use super::names::{Names, Read};
use super::record::{Digests, Record, StepRecord};
use crate::batch::plan::{Step, StepCommand};
use crate::convert::manifest::COPIED;
use crate::recipes;
use crate::verify::reference;
use std::path::Path;

/// What is left to do of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Left {
    /// The steps that are done.
    pub(super) record: Record,
    /// What each step of the plan reads.
    pub(super) reads: Vec<Digests>,
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
pub(super) fn left(
    names: &Names<'_>,
    (digester, engine): (&Digester, &Engine),
    old: Option<Record>,
    force: bool,
) -> Left {
    let steps = &names.job.steps;
    let reads: Vec<Digests> = steps.iter().map(|step| contents(names, step, digester, engine)).collect();
    let begun = Record::begin(&names.job.name, names.bundle());
    let anew = |reason: String| Left { record: begun.clone(), reads: reads.clone(), reason: Some(reason) };
    let Some(old) = old else { return anew("it is new".to_owned()) };
    if force {
        return anew("all is done anew".to_owned());
    }
    if old.version != begun.version {
        return anew(format!("version {} made it, and this is {}", old.version, begun.version));
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
    match expected.map(|expected| change(expected, &names.job.bundle, digester)) {
        None => anew(reason.unwrap_or_else(|| "nothing made its bundle".to_owned())),
        // What a later step had made of it is why there is another one now.
        Some(Some(change)) => anew(reason.unwrap_or(change)),
        Some(None) => Left { record: begun.with(kept.to_vec()), reads, reason },
    }
}

/// Digests of all that a step reads besides the bundle, and the version of what it runs in.
fn contents(names: &Names<'_>, step: &Step, digester: &Digester, engine: &Engine) -> Digests {
    let mut found = Digests::new();
    for read in names.reads(step) {
        found.extend(digester.files(&read.label, &read.path));
        found.extend(beside(&read, digester));
    }
    let preset = recipes::PRESETS.iter().find(|(name, _)| *name == names.job.recipe);
    if let Some((name, text)) = preset.filter(|_| step.command == StepCommand::Convert) {
        found.insert(format!("recipe {name}"), dijiang_format::digest::digest(text.as_bytes()));
    }
    if engine::is_used(step) {
        found.insert(engine::NAME.to_owned(), engine.version().to_owned());
    }
    found
}

/// What is read beside an ONNX file: the data that it names, and the texts and logits of its directory.
fn beside(read: &Read, digester: &Digester) -> Digests {
    let is_graph = read.path.extension().is_some_and(|ending| ending == "onnx");
    if !read.is_source || !is_graph || read.path.is_dir() {
        return Digests::new();
    }
    let parent = read.path.parent().unwrap_or(Path::new(""));
    let data = digester.locations(&read.path);
    let texts = COPIED.into_iter().chain([reference::FILE]).filter(|name| parent.join(name).exists());
    let names = data.iter().map(String::as_str).chain(texts);
    names.flat_map(|name| digester.files(&format!("{}/{name}", read.label), &parent.join(name))).collect()
}

/// Why a step is to be done, in one line.
fn difference(names: &Names<'_>, step: &Step, reads: &Digests, old: Option<&StepRecord>) -> Option<String> {
    let command = step.command.name();
    let Some(old) = old else { return Some(format!("step {command} is not done")) };
    if old.command != command {
        return Some(format!("step {command} stands where {} was", old.command));
    }
    if let Some(reason) = changed(&old.reads, reads) {
        return Some(reason);
    }
    let arguments = names.arguments(step);
    (arguments != old.arguments).then(|| format!("the options of step {command} changed"))
}

/// The first file that is not what it was, and how many there are besides.
fn changed(old: &Digests, new: &Digests) -> Option<String> {
    let shown = |name: &str| name.replacen("source/", "source ", 1);
    let of_new = new.iter().filter_map(|(name, digest)| match old.get(name) {
        Some(same) if same == digest => None,
        Some(old) if name == engine::NAME => Some(format!("{name} was {old}, and is {digest}")),
        Some(_) if digest.starts_with("cannot") => Some(format!("{} {digest}", shown(name))),
        Some(_) => Some(format!("{} changed", shown(name))),
        None => Some(format!("{} is new", shown(name))),
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
    let mut found = digester.files("", bundle);
    found.retain(|name, _| expected.contains_key(name));
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
        assert_eq!(changed(&old, &old), None);
        let recipe = digests(&[("recipe a.yaml", "4"), ("source/config.json", "2"), ("source/x", "3")]);
        assert_eq!(changed(&old, &recipe).as_deref(), Some("recipe a.yaml changed"));
        let several = digests(&[("recipe a.yaml", "1"), ("source/config.json", "5"), ("source/y", "3")]);
        assert_eq!(changed(&old, &several).as_deref(), Some("source config.json changed, and 2 more"));
        let gone = digests(&[("recipe a.yaml", "1"), ("source/config.json", "2")]);
        assert_eq!(changed(&old, &gone).as_deref(), Some("source x is gone"));
    }
}
