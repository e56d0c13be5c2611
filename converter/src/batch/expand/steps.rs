//! Steps of a document to calls of commands.

use super::options::{Commands, Files, Shape, StepOption, files, instead};
use super::paths;
use crate::batch::document::{Entry, Mistake, Mistakes, Node, Scalar, Value, Wrong};
use crate::batch::plan::{Step, StepCommand};
use crate::report::message::shown;
use crate::report::outcome::Place;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A step without the bundle that it is for.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pub(super) command: StepCommand,
    options: Vec<String>,
    pub(super) reads: Vec<(PathBuf, Place)>,
    pub(super) writes: Vec<(PathBuf, Place)>,
    /// The directories that it writes into.
    pub(super) directories: Vec<(PathBuf, Place)>,
    pub(super) place: Place,
    /// Whether its options are what the command takes.
    pub(super) is_right: bool,
}

/// What the commands of a job are called with.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) source: &'a Path,
    pub(super) bundle: &'a Path,
    pub(super) recipe: &'a str,
    /// Whether the recipe is a file.
    pub(super) reads_recipe: bool,
    pub(super) target: &'a str,
    pub(super) dtype: Option<&'a str>,
    /// The bundle of the baseline.
    pub(super) against: Option<&'a Path>,
    /// What stands for the place of each step.
    pub(super) place: Option<&'a Place>,
}

/// Makes templates, each list of steps once however many jobs have it.
#[derive(Debug)]
pub(super) struct StepReader<'a> {
    commands: &'a Commands,
    made: HashMap<(*const Node, bool), Rc<[Template]>>,
}

impl<'a> StepReader<'a> {
    pub(super) fn new(commands: &'a Commands) -> Self {
        Self { commands, made: HashMap::new() }
    }

    /// The steps of a list, or of none. Their order is checked, and their options by the commands themselves.
    pub(super) fn read(
        &mut self,
        steps: Option<&Rc<Node>>,
        job: &Place,
        has_baseline: bool,
        mistakes: &mut Mistakes,
    ) -> Rc<[Template]> {
        let Some(steps) = steps else { return [Template::convert(job.clone())].into() };
        let known = (Rc::as_ptr(steps), has_baseline);
        if let Some(made) = self.made.get(&known) {
            return made.clone();
        }
        let mut templates: Vec<Template> = Vec::new();
        for node in steps.items() {
            templates.extend(self.template(node, has_baseline, mistakes));
        }
        check_order(&templates, mistakes);
        if templates.first().is_none_or(|first| first.command != StepCommand::Convert) {
            templates.insert(0, Template::convert(steps.place()));
        }
        let made: Rc<[Template]> = templates.into();
        self.made.insert(known, made.clone());
        made
    }

    fn template(&self, node: &Rc<Node>, has_baseline: bool, mistakes: &mut Mistakes) -> Option<Template> {
        let (name, place, options) = match node.entries() {
            [entry] => (&*entry.key, entry.place(), entry.node.entries()),
            _ => (node.text()?, node.place(), [].as_slice()),
        };
        let command = StepCommand::named(name)?;
        let mut template = Template::of(command, place);
        for entry in options {
            let option = self.option(command, entry);
            let added = option.and_then(|option| template.add(&option, entry));
            template.is_right &= mistakes.note(added).is_some();
        }
        // What is wrong with one option is not said again of all of them together.
        if template.is_right {
            let checked = self.check(&template, options, has_baseline);
            template.is_right = mistakes.note(checked).is_some();
        }
        Some(template)
    }

    fn option(&self, command: StepCommand, entry: &Entry) -> Result<StepOption, Mistake> {
        if let Some(instead) = instead(command, &entry.key) {
            let found = format!("`{}` in a step {}", shown(&entry.key), command.name());
            let hint = "take it out, then `dijiang batch FILE --check`";
            return Err(Wrong::other(found, instead, hint).at(entry.place()));
        }
        self.commands.option(command, &entry.key).ok_or_else(|| {
            let known = self.commands.options(command).map(|option| option.name).collect();
            let owner = format!("a step {}", command.name());
            Wrong::UnknownKey { key: entry.key.to_string(), owner, known }.at(entry.place())
        })
    }

    fn check(&self, template: &Template, options: &[Entry], has_baseline: bool) -> Result<(), Mistake> {
        let path = Path::new("PATH");
        let against = has_baseline.then_some(path);
        let call = Call {
            source: path,
            bundle: path,
            recipe: "R",
            reads_recipe: false,
            target: "ort",
            dtype: None,
            against,
            place: None,
        };
        self.commands.check(template.command, &template.arguments(&call)).map_err(|(reason, about)| {
            let about = options.iter().find(|entry| Some(&*entry.key) == about.as_deref());
            let place = about.map_or_else(|| template.place.clone(), |entry| entry.node.place());
            Wrong::Option { command: template.command.name(), reason }.at(place)
        })
    }
}

impl Template {
    fn convert(place: Place) -> Self {
        Self::of(StepCommand::Convert, place)
    }

    /// A step without options.
    fn of(command: StepCommand, place: Place) -> Self {
        let [reads, writes, directories] = [const { Vec::new() }; 3];
        Self { command, options: Vec::new(), reads, writes, directories, place, is_right: true }
    }

    /// Adds an option with its values.
    fn add(&mut self, option: &StepOption, entry: &Entry) -> Result<(), Mistake> {
        let wrong = |expected: &str| {
            let (found, expected) = (entry.node.kind(), expected.to_owned());
            Wrong::Kind { found, expected, key: entry.key.to_string() }.at(entry.node.place())
        };
        match (&entry.node.value, option.shape) {
            (Value::Scalar(Scalar::Bool(wanted)), Shape::Switch) => {
                if *wanted {
                    self.options.push(format!("--{}", option.name));
                }
                Ok(())
            }
            (_, Shape::Switch) => Err(wrong("true or false")),
            (Value::List(items), Shape::Repeated | Shape::Joined) if !items.is_empty() => {
                let values =
                    items.iter().map(|item| self.value(option, item)).collect::<Result<Vec<_>, _>>()?;
                match option.shape {
                    Shape::Joined => self.push(option, &values.join(",")),
                    _ => values.iter().for_each(|value| self.push(option, value)),
                }
                Ok(())
            }
            (Value::Scalar(_), _) => {
                let value = self.value(option, &entry.node)?;
                self.push(option, &value);
                Ok(())
            }
            (_, Shape::Repeated | Shape::Joined) => Err(wrong("a value or a list of values")),
            (_, Shape::One) => Err(wrong("one value")),
        }
    }

    fn push(&mut self, option: &StepOption, value: &str) {
        let name = &option.name;
        // What begins with a dash would be taken for an option.
        if value.starts_with('-') {
            self.options.push(format!("--{name}={value}"));
        } else {
            self.options.extend([format!("--{name}"), value.to_owned()]);
        }
    }

    /// A value as the command takes it: paths are relative to the file that they stand in.
    fn value(&mut self, option: &StepOption, node: &Rc<Node>) -> Result<String, Mistake> {
        let text = match &node.value {
            Value::Scalar(Scalar::Text(text) | Scalar::Number(_, text)) if !text.contains('\0') => text,
            _ => {
                let (found, expected) = (node.kind(), "text or a number".to_owned());
                return Err(Wrong::Kind { found, expected, key: option.name.clone() }.at(node.place()));
            }
        };
        let path = |text: &str| paths::resolved(node.file(), text);
        let shown = |path: &Path| path.to_string_lossy().into_owned();
        match files(&option.name) {
            Files::None => Ok(text.clone()),
            Files::ReadsOrSelf if ["auto", "none", "self"].contains(&text.as_str()) => Ok(text.clone()),
            Files::Reads | Files::ReadsOrSelf => {
                let path = path(text);
                self.reads.push((path.clone(), node.place()));
                Ok(shown(&path))
            }
            Files::ReadsNamed => {
                let Some((name, file)) = text.split_once('=') else { return Ok(text.clone()) };
                let path = path(file);
                self.reads.push((path.clone(), node.place()));
                Ok(format!("{name}={}", shown(&path)))
            }
            Files::Writes => {
                let path = path(text);
                self.writes.push((path.clone(), node.place()));
                self.directories.push((path.clone(), node.place()));
                Ok(shown(&path))
            }
            Files::WritesNamed(ends) => {
                let path = path(text);
                let directory = path.parent().map(|directory| (directory.to_owned(), node.place()));
                self.directories.extend(directory);
                let path = shown(&path);
                let files = ends.iter().map(|end| (PathBuf::from(format!("{path}{end}")), node.place()));
                self.writes.extend(files);
                Ok(path)
            }
        }
    }

    /// What follows the command's name.
    fn arguments(&self, call: &Call<'_>) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let bundle = path(call.bundle);
        let mut arguments = match self.command {
            StepCommand::Convert => {
                let source = path(call.source);
                let output = ["-o", &bundle, "--recipe", call.recipe, "--target", call.target];
                let dtype = call.dtype.map(|dtype| ["--dtype", dtype]);
                std::iter::once(source.as_str())
                    .chain(output)
                    .chain(dtype.into_iter().flatten())
                    .map(str::to_owned)
                    .collect()
            }
            StepCommand::Quantize => vec![bundle.clone(), "-o".to_owned(), bundle, "--force".to_owned()],
            StepCommand::Bench => {
                let against = call.against.map(|against| ["--against".to_owned(), path(against)]);
                std::iter::once(bundle).chain(against.into_iter().flatten()).collect()
            }
            _ => vec![bundle],
        };
        arguments.extend(self.options.iter().cloned());
        arguments.push("--json".to_owned());
        arguments
    }

    /// The step of a job.
    pub(super) fn step(&self, call: &Call<'_>) -> Step {
        let mut reads: Vec<PathBuf> = self.reads.iter().map(|(path, _)| path.clone()).collect();
        if self.command == StepCommand::Convert {
            reads.push(call.source.to_owned());
            reads.extend(call.reads_recipe.then(|| call.recipe.into()));
        }
        Step {
            command: self.command,
            arguments: self.arguments(call),
            reads,
            writes: self.writes.iter().map(|(path, _)| path.clone()).collect(),
            place: call.place.unwrap_or(&self.place).clone(),
        }
    }

    pub(super) fn has(&self, option: &str) -> bool {
        has(&self.options, option)
    }
}

/// Whether arguments have an option.
pub(super) fn has(arguments: &[String], option: &str) -> bool {
    arguments.iter().any(|argument| argument.strip_prefix("--") == Some(option))
        || values(arguments, option).next().is_some()
}

/// The values of an option among arguments.
pub(super) fn values<'a>(arguments: &'a [String], option: &str) -> impl Iterator<Item = &'a str> {
    let (apart, joined) = (format!("--{option}"), format!("--{option}="));
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    let pairs = pairs.filter(move |(name, _)| **name == apart).map(|(_, value)| value.as_str());
    pairs.chain(arguments.iter().filter_map(move |argument| argument.strip_prefix(&joined)))
}

fn check_order(templates: &[Template], mistakes: &mut Mistakes) {
    let mut closed: Option<&str> = None;
    for (index, template) in templates.iter().enumerate() {
        let wrong = |found: &str, hint: &str| {
            Wrong::other(found, "steps in the order of a pipeline", hint).at(template.place.clone())
        };
        let trains = matches!(template.command, StepCommand::Calibrate | StepCommand::Finetune);
        match template.command {
            StepCommand::Convert if index > 0 => {
                mistakes.add(wrong("`convert` after another step", "make it the first, and the only one"));
            }
            StepCommand::Calibrate | StepCommand::Finetune | StepCommand::Quantize => {
                let reason = closed.filter(|reason| trains || *reason == QUANTIZED);
                if let Some(reason) = reason {
                    mistakes.add(wrong(
                        &format!("`{}` of a bundle {reason}", template.command.name()),
                        "train first, then `quantize`",
                    ));
                }
            }
            _ => {}
        }
        match template.command {
            StepCommand::Quantize => closed = Some(QUANTIZED),
            StepCommand::Convert if template.has("weights") => closed = Some(QUANTIZED),
            StepCommand::Convert if template.has("link") => closed = Some("whose weights are links"),
            _ => {}
        }
    }
}

/// Why a bundle is not changed any more.
const QUANTIZED: &str = "whose weights have few bits already";
