//! The paths of a call, looked at before the command runs: a file that is not there is told alike by every command.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory as _};
use dijiang_format::place::NOTHING;
use std::path::PathBuf;

/// What a command does with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It opens a model or a bundle there, and says what it found instead.
    Opens,
    Reads,
    Writes,
}

/// Every argument that is a path, of all commands.
const PATHS: &[(&str, Use)] = &[
    ("a", Use::Opens),
    ("b", Use::Opens),
    ("source", Use::Opens),
    ("bundle", Use::Opens),
    ("bundles", Use::Opens),
    ("against", Use::Opens),
    ("data", Use::Reads),
    ("valid", Use::Reads),
    ("perplexity", Use::Reads),
    ("prompt_file", Use::Reads),
    ("load_state", Use::Reads),
    ("reference", Use::Reads),
    ("metrics", Use::Reads),
    ("jobs", Use::Opens),
    ("file", Use::Reads),
    ("directory", Use::Writes),
    ("output", Use::Writes),
    ("save_state", Use::Writes),
    ("svg", Use::Writes),
    ("profile", Use::Writes),
];

/// A file that a call names is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {NOTHING} (hint: `dijiang {command} --help` says what {argument} takes)", path.display())]
pub(super) struct Missing {
    path: PathBuf,
    command: String,
    /// As it is written in a call.
    argument: String,
}

/// Looks for every file that the command of the call will read.
pub(super) fn check(call: &ArgMatches) -> Result<(), Missing> {
    let Some((name, given)) = call.subcommand() else { return Ok(()) };
    let program = super::Cli::command();
    for (id, _) in PATHS.iter().filter(|(_, what)| *what == Use::Reads) {
        // Arguments of other commands are unknown to this one.
        let is_given =
            given.ids().any(|known| known == id) && given.value_source(id) == Some(ValueSource::CommandLine);
        let values = is_given.then(|| given.get_many::<PathBuf>(id)).flatten();
        if let Some(path) = values.into_iter().flatten().find(|path| !path.exists()) {
            let (path, command) = (path.clone(), name.to_owned());
            return Err(Missing { path, argument: written(program.find_subcommand(name), id), command });
        }
    }
    Ok(())
}

/// `--data`, or `FILE` of what is given by its place.
fn written(command: Option<&Command>, id: &str) -> String {
    let argument = command.and_then(|c| c.get_arguments().find(|a| a.get_id() == id));
    let long = argument.and_then(|a| a.get_long());
    long.map_or_else(|| id.to_uppercase(), |long| format!("--{long}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueHint;

    #[test]
    fn every_path_is_in_the_table() {
        let program = super::super::Cli::command();
        let arguments = program.get_subcommands().flat_map(Command::get_arguments);
        let paths = arguments.filter(|a| a.get_value_hint() == ValueHint::AnyPath);
        for path in paths {
            let id = path.get_id().as_str();
            assert!(PATHS.iter().any(|(known, _)| *known == id), "{id}");
        }
    }
}
