//! The options of the commands that may be steps, as the commands themselves declare them.

use crate::batch::plan::StepCommand;
use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, Command};

/// The commands that may be steps.
#[derive(Debug)]
pub struct Commands(Vec<Command>);

/// How values of an option are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// It takes none: it is there or not.
    Switch,
    One,
    /// Several, the option once for each.
    Repeated,
    /// Several, with commas between them.
    Joined,
}

/// An option by its long name, without the dashes.
#[derive(Debug)]
pub struct StepOption {
    pub name: String,
    pub shape: Shape,
    /// One line for people.
    pub help: String,
    /// All that it takes, where these are a few words.
    pub values: Vec<String>,
}

/// What an option does with files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// The value is no file.
    None,
    /// It is a path that is read.
    Reads,
    /// It is `NAME=PATH`.
    ReadsNamed,
    /// It is a path, or `self`.
    ReadsOrSelf,
    /// It is the path of a directory that is written into.
    Writes,
    /// It is a path that names of files begin with, which are written: these follow it.
    WritesNamed(&'static [&'static str]),
}

/// What options do with files, whichever command they are of.
const FILES: [(&str, Files); 8] = [
    ("data", Files::Reads),
    ("valid", Files::Reads),
    ("perplexity", Files::Reads),
    ("reference", Files::Reads),
    ("task", Files::ReadsNamed),
    ("teacher", Files::ReadsOrSelf),
    ("svg", Files::WritesNamed(&["-latency.svg", "-memory.svg"])),
    ("profile", Files::Writes),
];

/// Options that are no step's: the command, the option, and what is written in its place.
const NOT_FOR_STEPS: [(StepCommand, &str, &str); 12] = [
    (StepCommand::Convert, "output", "`out` of the job"),
    (StepCommand::Convert, "recipe", "`recipe` of the job"),
    (StepCommand::Convert, "target", "`target` of the job"),
    (StepCommand::Convert, "dtype", "`dtype` of the job"),
    (StepCommand::Convert, "force", "nothing: a batch replaces the bundles that it made"),
    (StepCommand::Convert, "offline", "`--offline` of `dijiang batch`, which finds the models"),
    (StepCommand::Convert, "stop-after", "nothing: it makes no bundle; type the command by itself"),
    (StepCommand::Finetune, "resume", "nothing: a batch that was stopped goes on by itself"),
    (StepCommand::Quantize, "output", "nothing: the job's bundle is quantized in its place"),
    (StepCommand::Quantize, "force", "nothing: the job's bundle is quantized in its place"),
    (StepCommand::Eval, "samples", "nothing: type the command by itself"),
    (StepCommand::Bench, "against", "`baseline` of the job"),
];

/// Options that are no step's, whichever command has them.
const NEVER: [&str; 5] = ["estimate", "help", "json", "report", "version"];

impl Commands {
    /// The commands below that of the program.
    pub fn of(program: &Command) -> Self {
        let find = |command: StepCommand| {
            let found = program.find_subcommand(command.name()).cloned();
            found.unwrap_or_else(|| Command::new(command.name()))
        };
        Self(StepCommand::ALL.into_iter().map(find).collect())
    }

    fn command(&self, command: StepCommand) -> &Command {
        &self.0[command as usize]
    }

    /// The options that a step may have.
    pub fn options(&self, command: StepCommand) -> impl Iterator<Item = StepOption> {
        let arguments = self.command(command).get_arguments();
        let told = arguments.filter(|argument| !argument.is_hide_set());
        let options = told.filter_map(|argument| Some((argument.get_long()?, argument)));
        let options = options.filter(move |(name, _)| instead(command, name).is_none());
        options.map(|(name, argument)| StepOption {
            name: name.to_owned(),
            shape: shape(argument),
            help: argument.get_help().map(ToString::to_string).unwrap_or_default(),
            values: match argument.get_action() {
                ArgAction::SetTrue => Vec::new(),
                _ => argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
            },
        })
    }

    /// An option by its name.
    pub(super) fn option(&self, command: StepCommand, name: &str) -> Option<StepOption> {
        self.options(command).find(|option| option.name == name)
    }

    /// What the command itself says of its arguments: the reason, and the name of the option that it is about.
    pub(super) fn check(
        &self,
        command: StepCommand,
        arguments: &[String],
    ) -> Result<(), (String, Option<String>)> {
        let line = std::iter::once(command.name()).chain(arguments.iter().map(String::as_str));
        let Err(error) = self.command(command).clone().try_get_matches_from(line) else { return Ok(()) };
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let reason = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let about = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) => argument.strip_prefix("--").map(|argument| {
                let end = argument.find(|c: char| !c.is_alphanumeric() && c != '-').unwrap_or(argument.len());
                argument[..end].to_owned()
            }),
            _ => None,
        };
        Err((reason, about))
    }
}

fn shape(argument: &clap::Arg) -> Shape {
    match (argument.get_action(), argument.get_value_delimiter()) {
        (ArgAction::SetTrue, _) => Shape::Switch,
        (_, Some(_)) => Shape::Joined,
        (ArgAction::Append, None) => Shape::Repeated,
        _ => Shape::One,
    }
}

/// What is written in place of an option that is no step's.
pub(super) fn instead(command: StepCommand, name: &str) -> Option<&'static str> {
    if NEVER.contains(&name) {
        return Some("nothing: a batch reads what its steps print");
    }
    NOT_FOR_STEPS.iter().find(|row| (row.0, row.1) == (command, name)).map(|row| row.2)
}

pub(super) fn files(option: &str) -> Files {
    FILES.iter().find(|(name, _)| *name == option).map_or(Files::None, |(_, files)| *files)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory as _;
    use clap::builder::ValueParser;

    pub(crate) fn commands() -> Commands {
        Commands::of(&Cli::command())
    }

    #[test]
    fn every_command_is_one_of_the_program() {
        for command in StepCommand::ALL {
            assert!(commands().options(command).count() > 1, "{}", command.name());
        }
    }

    #[test]
    fn every_option_that_takes_a_path_is_in_the_table() {
        let commands = commands();
        let path = ValueParser::path_buf().type_id();
        for command in StepCommand::ALL {
            for argument in commands.command(command).get_arguments() {
                let Some(name) = argument.get_long().filter(|name| instead(command, name).is_none()) else {
                    continue;
                };
                let is_path = argument.get_value_parser().type_id() == path;
                assert!(!is_path || files(name) != Files::None, "{} --{name}", command.name());
            }
        }
    }

    #[test]
    fn what_is_no_steps_is_an_option_of_its_command() {
        let commands = commands();
        for (command, name, _) in NOT_FOR_STEPS {
            let names = commands.command(command).get_arguments().filter_map(clap::Arg::get_long);
            assert!(names.into_iter().any(|long| long == name), "{} --{name}", command.name());
        }
        for (name, _) in FILES {
            assert!(StepCommand::ALL.iter().any(|c| commands.option(*c, name).is_some()), "--{name}");
        }
    }
}
