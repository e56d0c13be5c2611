//! Jobs before their steps are made: what they are called and where each of their settings stands.

use super::load::Loaded;
use super::{check_count, matrix};
use crate::batch::document::{Mistakes, Node};
use crate::recipes;
use crate::report::outcome::Place;
use std::path::Path;
use std::rc::Rc;

/// A job to be.
#[derive(Debug)]
pub(super) struct Draft {
    /// Empty where what was written is none.
    pub(super) name: String,
    pub(super) place: Place,
    /// Absent where what was written is none.
    pub(super) model: Option<Rc<Node>>,
    /// Where settings are looked for, in this order: the job, then entries of `include`, the last one first.
    pub(super) own: Vec<Rc<Node>>,
    /// Then here.
    pub(super) defaults: Rc<[Rc<Node>]>,
    /// Values of a matrix, which no setting overrides.
    pub(super) recipe: Option<Rc<Node>>,
    pub(super) target: Option<Rc<Node>>,
    pub(super) dtype: Option<Rc<Node>>,
    /// The name of the job that differs by the recipe softmax alone, if there is one.
    pub(super) sibling: Option<String>,
    /// Whether nothing was left out of what it is made of.
    pub(super) is_whole: bool,
}

/// All that could be made of the files.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub(super) jobs: Vec<Draft>,
    /// Whether every job that was meant is among them, under its name.
    pub(super) is_complete: bool,
}

impl Draft {
    /// The setting of a key, and whether the job has it of its own.
    pub(super) fn setting(&self, key: &str) -> Option<(&Rc<Node>, bool)> {
        let own = self.own.iter().find_map(|node| node.get(key)).map(|node| (node, true));
        own.or_else(|| self.default(key).map(|node| (node, false)))
    }

    pub(super) fn default(&self, key: &str) -> Option<&Rc<Node>> {
        self.defaults.iter().find_map(|node| node.get(key))
    }

    pub(super) fn recipe(&self) -> Option<&Rc<Node>> {
        self.recipe.as_ref().or_else(|| Some(self.setting("recipe")?.0))
    }

    pub(super) fn target(&self) -> Option<&Rc<Node>> {
        self.target.as_ref().or_else(|| Some(self.setting("target")?.0))
    }

    pub(super) fn dtype(&self) -> Option<&Rc<Node>> {
        self.dtype.as_ref().or_else(|| Some(self.setting("dtype")?.0))
    }

    pub(super) fn is_softmax(&self) -> bool {
        self.recipe().and_then(|node| node.text()).unwrap_or(recipes::DEFAULT) == SOFTMAX
    }
}

/// The recipe that others are compared with, which keeps all attention.
pub(super) const SOFTMAX: &str = "softmax";

/// The jobs of all files.
pub(super) fn drafts(loaded: &Loaded, mistakes: &mut Mistakes) -> Drafts {
    let mut is_complete = loaded.is_complete;
    let mut drafts = Vec::new();
    for file in &loaded.files {
        let defaults: Rc<[Rc<Node>]> = file.defaults.clone().into();
        if let Some(matrix) = file.root.get("matrix") {
            is_complete &= matrix::expand(matrix, &defaults, &mut drafts, mistakes);
        }
        let jobs = file.root.get("jobs").map(|list| list.items()).unwrap_or_default();
        if let Err(wrong) = check_count(&drafts, jobs.len()) {
            mistakes.add(wrong.at(file.root.place()));
            is_complete = false;
            break;
        }
        drafts.extend(jobs.iter().map(|job| explicit(job, &defaults)));
    }
    Drafts { jobs: drafts, is_complete }
}

pub(super) fn are_whole(nodes: &[Rc<Node>]) -> bool {
    nodes.iter().all(|node| node.is_whole())
}

fn explicit(job: &Rc<Node>, defaults: &Rc<[Rc<Node>]>) -> Draft {
    let name = job.get("name");
    Draft {
        name: name.and_then(|name| name.text()).unwrap_or_default().to_owned(),
        place: name.map_or_else(|| job.place(), |name| name.place()),
        model: job.get("model").cloned(),
        own: vec![job.clone()],
        defaults: defaults.clone(),
        recipe: None,
        target: None,
        dtype: None,
        sibling: None,
        is_whole: job.is_whole() && are_whole(defaults),
    }
}

/// The path of a model, and the node that it stands in.
pub(super) fn model_path(model: &Rc<Node>) -> (&Rc<Node>, &str) {
    let node = model.get("path").unwrap_or(model);
    (node, node.text().unwrap_or_default())
}

/// What jobs are named after: a model's name, or what its path ends in.
pub(super) fn model_name(model: &Rc<Node>) -> String {
    match model.get("name").and_then(|name| name.text()) {
        Some(name) => name.to_owned(),
        None => stem(model_path(model).1),
    }
}

/// The last part of a path without its ending, fit for a name.
pub(super) fn stem(path: &str) -> String {
    let name =
        Path::new(path).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let endings = [".onnx", ".yaml", ".yml"];
    let name = endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    let fit = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).chars().map(fit).collect()
}
