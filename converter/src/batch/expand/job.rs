//! Drafts to jobs: the source, the recipe, steps and limits of each.

use super::OnHub;
use super::draft::{Draft, model_path};
use super::options::Commands;
use super::paths;
use super::steps::{Call, StepReader, Template};
use crate::batch::document::{Mistake, Mistakes, Node, Wrong};
use crate::batch::plan::{Job, Quantity, Step, StepCommand, Threshold};
use crate::convert::{look, quantization};
use crate::hub::HubModel;
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
    /// Whether its output is what was meant, so that it can be held against those of others.
    pub(super) has_output: bool,
    /// Whether its steps and limits are all that were meant, so that one can be held against the other.
    pub(super) is_whole: bool,
}

struct Reader<'a> {
    steps: StepReader<'a>,
    /// The outputs of jobs, by their names.
    outputs: HashMap<&'a str, PathBuf>,
    /// The same as a set.
    made: HashSet<PathBuf>,
    exists: HashMap<PathBuf, Option<String>>,
    hub: OnHub<'a>,
    /// Where models of the hub lie, or what is wrong with them.
    located: HashMap<String, Result<Option<PathBuf>, String>>,
    /// What is wrong with models and recipes.
    models: HashMap<PathBuf, Option<String>>,
    recipes: HashMap<String, Option<String>>,
}

/// The jobs of drafts, without the mistakes of those that are none.
pub(super) fn jobs(
    drafts: &[Draft],
    commands: &Commands,
    hub: OnHub<'_>,
    mistakes: &mut Mistakes,
) -> Vec<Made> {
    let named = drafts.iter().filter(|draft| !draft.name.is_empty());
    let outputs: HashMap<&str, PathBuf> = named.map(|draft| (draft.name.as_str(), output(draft).0)).collect();
    let mut reader = Reader {
        steps: StepReader::new(commands),
        made: outputs.values().cloned().collect(),
        outputs,
        exists: HashMap::new(),
        hub,
        located: HashMap::new(),
        models: HashMap::new(),
        recipes: HashMap::new(),
    };
    let named = check_names(drafts, mistakes);
    drafts.iter().zip(named).map(|(draft, is_named)| reader.job(draft, is_named, mistakes)).collect()
}

/// Whether each has a name that is its own.
fn check_names<'a>(drafts: &'a [Draft], mistakes: &mut Mistakes) -> Vec<bool> {
    let mut first: HashMap<&'a str, &'a Place> = HashMap::new();
    let check = |Draft { name, place, .. }: &'a Draft| {
        // That was told.
        if name.is_empty() {
            return false;
        }
        let is_name = crate::batch::schema::is_name(name);
        if !is_name {
            mistakes.add(no_name(name).at(place.clone()));
        }
        let other = first.insert(name, place);
        if let Some(other) = other {
            let hint = "rename one; a model of a matrix is named by `{name: NAME, path: PATH}`";
            mistakes.add(Wrong::twice("a job", name, other, hint).at(place.clone()));
        }
        is_name && other.is_none()
    };
    drafts.iter().map(check).collect()
}

fn no_name(name: &str) -> Wrong {
    let found = format!("a job called `{}`", shown(name));
    let expected = "a name of ASCII that begins with a letter or digit, 120 bytes at most";
    Wrong::other(found, expected, "name the model: `{name: NAME, path: PATH}`")
}

/// Whether an output would not stay behind where the directory is moved.
fn check_absolute(draft: &Draft, mistakes: &mut Mistakes) -> bool {
    let Some((node, _)) = draft.setting("out") else { return true };
    let path = Path::new(node.text().unwrap_or_default());
    if path.is_absolute() {
        let hint = "name it from the directory of the file, and then `dijiang batch FILE --check`".to_owned();
        let (path, reason, expected) = (path.to_owned(), "it is absolute".to_owned(), "a relative path");
        mistakes.add(Wrong::Path { path, reason, expected, hint }.at(node.place()));
        return false;
    }
    true
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
    fn job(&mut self, draft: &Draft, is_named: bool, mistakes: &mut Mistakes) -> Made {
        let (source, source_place) = self.source(draft, mistakes);
        let recipe = self.recipe(draft, mistakes);
        let is_relative = check_absolute(draft, mistakes);
        let (bundle, output_place) = output(draft);
        let thresholds = thresholds(draft);
        let (baseline, baseline_place) = baseline(draft, &thresholds);
        let target = draft.target().and_then(|node| node.text()?.parse().ok()).unwrap_or_default();
        let dtype: Option<DType> = draft.dtype().and_then(|node| node.text()?.parse().ok());
        let setting = draft.setting("steps");
        let steps =
            self.steps.read(setting.map(|(node, _)| node), &draft.place, baseline.is_some(), mistakes);
        self.check_reads(&steps, mistakes);
        check_target(&draft.name, target, &steps, mistakes);
        let call = Call {
            source: &source,
            bundle: &bundle,
            recipe: &recipe,
            reads_recipe: is_file(&recipe),
            target: Target::name(target),
            dtype: dtype.map(DType::name),
            against: baseline.as_deref().and_then(|name| self.outputs.get(name)).map(PathBuf::as_path),
            // Many jobs may have those of the defaults.
            place: setting.filter(|(_, is_own)| !is_own).map(|_| &draft.place),
        };
        let calls: Vec<Step> = steps.iter().map(|step| step.step(&call)).collect();
        let name = draft.name.clone();
        let place = draft.place.clone();
        let job =
            Job { name, source, bundle, recipe, target, dtype, steps: calls, thresholds, baseline, place };
        let is_whole = is_named && draft.is_whole && steps.iter().all(|step| step.is_right);
        let has_output = is_named && is_relative;
        Made { job, source_place, output_place, baseline_place, steps, has_output, is_whole }
    }

    fn source(&mut self, draft: &Draft, mistakes: &mut Mistakes) -> (PathBuf, Place) {
        let Some(model) = &draft.model else { return (PathBuf::new(), draft.place.clone()) };
        let (node, text) = model_path(model);
        let (path, place) = (paths::resolved(node.file(), text), node.place());
        if self.is_made(&path) {
            return (path, place);
        }
        let path = match hub_model(node.file(), text) {
            None => path,
            Some(model) => match mistakes.note(self.located(&model, &place)) {
                Some(Some(located)) => located,
                // As it is named: the command that converts it takes that too.
                _ => return (PathBuf::from(text), place),
            },
        };
        let looked = self.exists(&path, &place).and_then(|()| self.is_model(&path, &place));
        mistakes.note(looked);
        (path, place)
    }

    fn located(&mut self, model: &HubModel, place: &Place) -> Result<Option<PathBuf>, Mistake> {
        let known = self.located.entry(model.to_string());
        let found = known.or_insert_with(|| (self.hub)(model));
        found.clone().map_err(|reason| Wrong::Told { reason }.at(place.clone()))
    }

    /// Whether a path is there only after a job has run.
    fn is_made(&self, path: &Path) -> bool {
        path.ancestors().any(|up| self.made.contains(up))
    }

    fn check_reads(&mut self, steps: &[Template], mistakes: &mut Mistakes) {
        for (path, place) in steps.iter().flat_map(|step| &step.reads) {
            if !self.is_made(path) {
                mistakes.note(self.exists(path, place));
            }
        }
    }

    fn exists(&mut self, path: &Path, place: &Place) -> Result<(), Mistake> {
        let known = self.exists.entry(path.to_owned());
        let reason = known.or_insert_with(|| path.metadata().err().map(|error| error.to_string()));
        let Some(reason) = reason else { return Ok(()) };
        let expected = "a file or directory, by its path from the file that names it";
        let hint = "correct the path, then `dijiang batch FILE --check`".to_owned();
        Err(Wrong::Path { path: path.to_owned(), reason: reason.clone(), expected, hint }.at(place.clone()))
    }

    /// Whether a conversion would take it, as far as that shows without its weights.
    fn is_model(&mut self, path: &Path, place: &Place) -> Result<(), Mistake> {
        let known = self.models.entry(path.to_owned());
        let reason = known.or_insert_with(|| look(path).err().map(|error| error.to_string()));
        let Some(reason) = reason else { return Ok(()) };
        Err(Wrong::Told { reason: reason.clone() }.at(place.clone()))
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
            mistakes.add(Wrong::Told { reason: reason.clone() }.at(node.place()));
        }
        path
    }
}

/// The model of the hub that a file names, where nothing lies beside that file of which it may be the path.
fn hub_model(file: &Path, text: &str) -> Option<HubModel> {
    let owner = Path::new(text).iter().next()?.to_str()?;
    HubModel::named_by(Path::new(text)).filter(|_| !paths::resolved(file, owner).exists())
}

fn is_file(recipe: &str) -> bool {
    Path::new(recipe).extension().is_some_and(|ending| ending == "yaml" || ending == "yml")
}

/// Notes steps that store weights in a way that the target does not read.
fn check_target(job: &str, target: Target, steps: &[Template], mistakes: &mut Mistakes) {
    for step in steps.iter().filter(|_| !quantization::is_read_by(target)) {
        let what = match step.command {
            StepCommand::Quantize => "quantize",
            StepCommand::Convert if step.has("weights") => "weights",
            _ => continue,
        };
        let found = format!("`{what}` in job `{job}`, whose target is `{target}`");
        let hint = "give the job `target: ort`, or take it out, then `dijiang batch FILE --check`";
        let wrong = Wrong::other(found, "the target `ort`, whose own operators read such weights", hint);
        mistakes.add(wrong.at(step.place.clone()));
    }
}

/// The limits of a job. A softmax model takes few of those of `defaults`: the others are measured against it.
fn thresholds(draft: &Draft) -> Vec<Threshold> {
    let for_softmax = [Quantity::CheckError, Quantity::BundleBytes];
    let own: Vec<&Rc<Node>> = draft.own.iter().filter_map(|node| node.get("require")).collect();
    let defaults: Vec<&Rc<Node>> = draft.defaults.iter().filter_map(|node| node.get("require")).collect();
    let limit = |quantity: Quantity| {
        let find = |nodes: &[&Rc<Node>]| nodes.iter().find_map(|node| node.get(quantity.name())).cloned();
        let holds = !draft.is_softmax() || for_softmax.contains(&quantity);
        let own = find(&own).map(|node| (node.place(), node));
        // Many jobs may have one of the defaults.
        let of_defaults = || Some((draft.place.clone(), find(&defaults).filter(|_| holds)?));
        let (place, node) = own.or_else(of_defaults)?;
        Some(Threshold { quantity, limit: node.text()?.parse().ok()?, place })
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
