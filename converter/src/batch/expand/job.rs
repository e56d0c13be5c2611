//! Drafts to jobs: the source, the recipe, steps and limits of each.

use super::draft::{Draft, model_path};
use super::options::Commands;
use super::paths;
use super::steps::{Call, StepReader, Template};
use crate::batch::document::{Mistake, Mistakes, Node, Wrong};
use crate::batch::plan::{Job, Quantity, Step, StepCommand, Threshold};
use crate::recipes;
use crate::report::message::shown;
use crate::report::outcome::Place;
use dijiang_format::dtype::DType;
use dijiang_format::target::Target;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Where bundles go that no directory is named for.
const OUT: &str = "bundles";

/// A job, and where what it names stands.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) job: Job,
    pub(super) source_place: Place,
    pub(super) output_place: Place,
    pub(super) baseline_place: Place,
    pub(super) steps: Rc<[Template]>,
}

struct Reader<'a> {
    steps: StepReader<'a>,
    exists: HashMap<PathBuf, Option<String>>,
    recipes: HashMap<String, Option<String>>,
}

/// The jobs of drafts, without the mistakes of those that are none.
pub(super) fn jobs(drafts: &[Draft], commands: &Commands, mistakes: &mut Mistakes) -> Vec<Made> {
    let mut reader =
        Reader { steps: StepReader::new(commands), exists: HashMap::new(), recipes: HashMap::new() };
    check_names(drafts, mistakes);
    let outputs: HashMap<&str, PathBuf> =
        drafts.iter().map(|draft| (draft.name.as_str(), output(draft).0)).collect();
    let made: HashSet<&Path> = outputs.values().map(PathBuf::as_path).collect();
    drafts.iter().map(|draft| reader.job(draft, (&outputs, &made), mistakes)).collect()
}

fn check_names(drafts: &[Draft], mistakes: &mut Mistakes) {
    let mut first: HashMap<&str, &Place> = HashMap::new();
    for draft in drafts {
        if !crate::batch::schema::is_name(&draft.name) {
            let found = format!("a job called `{}`", shown(&draft.name));
            let hint = "name the model: `{name: NAME, path: PATH}`";
            mistakes.add(
                Wrong::other(
                    found,
                    "a name of ASCII that begins with a letter or digit, 120 bytes at most",
                    hint,
                )
                .at(draft.place.clone()),
            );
        }
        if let Some(first) = first.insert(&draft.name, &draft.place) {
            let hint = "rename one; a model of a matrix is named by `{name: NAME, path: PATH}`";
            mistakes.add(Wrong::twice("a job", &draft.name, first, hint).at(draft.place.clone()));
        }
    }
}

/// Notes an output that would stay behind where the directory is moved.
fn check_absolute(draft: &Draft, mistakes: &mut Mistakes) {
    let Some((node, _)) = draft.setting("out") else { return };
    let path = Path::new(node.text().unwrap_or_default());
    if path.is_absolute() {
        let hint = "name it from the directory of the file, and then `dijiang batch FILE --check`".to_owned();
        let (path, reason, expected) = (path.to_owned(), "it is absolute".to_owned(), "a relative path");
        mistakes.add(Wrong::Path { path, reason, expected, hint }.at(node.place()));
    }
}

/// Where the bundle of a job goes, and where that is written.
fn output(draft: &Draft) -> (PathBuf, Place) {
    let text = |node: &Rc<Node>| node.text().unwrap_or_default().to_owned();
    if let Some(own) = draft.own.iter().find_map(|node| node.get("out")) {
        return (paths::resolved(own.file(), &text(own)), own.place());
    }
    match draft.default("out") {
        Some(out) => (paths::resolved(out.file(), &text(out)).join(&draft.name), out.place()),
        None => (paths::resolved(&draft.place.file, OUT).join(&draft.name), draft.place.clone()),
    }
}

impl Reader<'_> {
    /// A job, beside the outputs of all jobs: by name, and as a set.
    fn job(
        &mut self,
        draft: &Draft,
        (outputs, made): (&HashMap<&str, PathBuf>, &HashSet<&Path>),
        mistakes: &mut Mistakes,
    ) -> Made {
        let (source_node, source) = model_path(&draft.model);
        let source = paths::resolved(source_node.file(), source);
        mistakes.note(self.exists(&source, &source_node.place()));
        let recipe = self.recipe(draft, mistakes);
        check_absolute(draft, mistakes);
        let (bundle, output_place) = output(draft);
        let thresholds = thresholds(draft);
        let (baseline, baseline_place) = baseline(draft, &thresholds);
        let steps = draft.setting("steps").map(|(node, _)| node);
        let steps = self.steps.read(steps, &draft.place, baseline.is_some(), mistakes);
        for (path, place) in steps.iter().flat_map(|step| &step.reads) {
            // A bundle is there only after its job has run.
            let missing = self.exists(path, place).err();
            let missing = missing.filter(|_| !path.ancestors().any(|up| made.contains(up)));
            missing.into_iter().for_each(|mistake| mistakes.add(mistake));
        }
        let target = draft.target().and_then(|node| node.text()?.parse().ok()).unwrap_or_default();
        let dtype: Option<DType> = draft.dtype().and_then(|node| node.text()?.parse().ok());
        let call = Call {
            source: &source,
            bundle: &bundle,
            recipe: &recipe,
            reads_recipe: is_file(&recipe),
            target: Target::name(target),
            dtype: dtype.map(DType::name),
            against: baseline.as_deref().and_then(|name| outputs.get(name)).map(PathBuf::as_path),
        };
        let calls: Vec<Step> = steps.iter().map(|step| step.step(&call)).collect();
        let name = draft.name.clone();
        let place = draft.place.clone();
        let job =
            Job { name, source, bundle, recipe, target, dtype, steps: calls, thresholds, baseline, place };
        Made { job, source_place: source_node.place(), output_place, baseline_place, steps }
    }

    fn exists(&mut self, path: &Path, place: &Place) -> Result<(), Mistake> {
        let known = self.exists.entry(path.to_owned());
        let reason = known.or_insert_with(|| path.metadata().err().map(|error| error.to_string()));
        let Some(reason) = reason else { return Ok(()) };
        let expected = "a file or directory, by its path from the file that names it";
        let hint = "correct the path, then `dijiang batch FILE --check`".to_owned();
        Err(Wrong::Path { path: path.to_owned(), reason: reason.clone(), expected, hint }.at(place.clone()))
    }

    /// The recipe's name, or its path from here. Its file is read, so that a wrong one is told now.
    fn recipe(&mut self, draft: &Draft, mistakes: &mut Mistakes) -> String {
        let Some(node) = draft.recipe() else { return recipes::DEFAULT.to_owned() };
        let text = node.text().unwrap_or_default();
        let presets = || recipes::PRESETS.iter().map(|(name, _)| (*name).to_owned());
        if !is_file(text) {
            if !presets().any(|name| name == text) {
                let known: Vec<String> = presets().collect();
                let expected = format!("one of {}, or the path of a .yaml file", known.join(", "));
                let wrong = Wrong::UnknownName { what: "the recipe", name: text.to_owned(), expected, known };
                mistakes.add(wrong.at(node.place()));
            }
            return text.to_owned();
        }
        let path = paths::resolved(node.file(), text).to_string_lossy().into_owned();
        if mistakes.note(self.exists(Path::new(&path), &node.place())).is_none() {
            return path;
        }
        let known = self.recipes.entry(path.clone());
        let reason = known.or_insert_with(|| recipes::load(&path).err().map(|error| error.to_string()));
        if let Some(reason) = reason {
            let hint = "correct it, then `dijiang batch FILE --check`";
            mistakes.add(Wrong::other(reason.clone(), "a recipe", hint).at(node.place()));
        }
        path
    }
}

fn is_file(recipe: &str) -> bool {
    Path::new(recipe).extension().is_some_and(|ending| ending == "yaml" || ending == "yml")
}

/// The limits of a job. A softmax model takes few of those of `defaults`: the others are measured against it.
fn thresholds(draft: &Draft) -> Vec<Threshold> {
    let for_softmax = [Quantity::CheckError, Quantity::BundleBytes];
    let own: Vec<&Rc<Node>> = draft.own.iter().filter_map(|node| node.get("require")).collect();
    let defaults: Vec<&Rc<Node>> = draft.defaults.iter().filter_map(|node| node.get("require")).collect();
    let limit = |quantity: Quantity| {
        let find = |nodes: &[&Rc<Node>]| nodes.iter().find_map(|node| node.get(quantity.name())).cloned();
        let holds = !draft.is_softmax() || for_softmax.contains(&quantity);
        let node = find(&own).or_else(|| find(&defaults).filter(|_| holds))?;
        Some(Threshold { quantity, limit: node.text()?.parse().ok()?, place: node.place() })
    };
    Quantity::ALL.into_iter().filter_map(limit).collect()
}

/// The baseline that a job names; of a matrix, where it has a limit that compares, its softmax.
fn baseline(draft: &Draft, thresholds: &[Threshold]) -> (Option<String>, Place) {
    if let Some(node) = draft.own.iter().find_map(|node| node.get("baseline")) {
        return (node.text().map(str::to_owned), node.place());
    }
    let compares = thresholds.iter().any(|threshold| threshold.quantity.compares());
    (draft.sibling.clone().filter(|_| compares), draft.place.clone())
}

impl Made {
    /// The calls of a command.
    pub(super) fn calls(&self, command: StepCommand) -> impl Iterator<Item = &Step> {
        self.job.steps.iter().filter(move |step| step.command == command)
    }
}
