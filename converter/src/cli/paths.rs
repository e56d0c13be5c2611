//! The paths of a call, looked at before the command runs: a file that is not there is told alike by every command.

use crate::hub::HubModel;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory as _};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_format::place::{NOTHING, bundle_of};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// What a command does with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It opens a model or a bundle there, and says what it found instead.
    Opens,
    /// The same, where a model of the hub is none.
    OpensBundle,
    Reads,
    /// The same, or stdin where it is `-`.
    ReadsOrStdin,
    Writes,
    /// It writes a file into a directory that is there.
    WritesFile,
    /// It writes files into this directory, which it does not make.
    WritesInto,
    /// It writes files whose paths begin so, beside each other.
    WritesBeside,
}

/// What stands for stdin in the place of a path.
pub(super) const STDIN: &str = "-";

/// Commands that make one file, into a directory that is there.
const ONE_FILE: [&str; 3] = ["plot", "report", "scan"];

/// Every argument that is a path, of all commands.
const PATHS: &[(&str, Use)] = &[
    ("a", Use::Opens),
    ("b", Use::Opens),
    ("source", Use::Opens),
    ("bundle", Use::OpensBundle),
    ("bundles", Use::OpensBundle),
    ("against", Use::OpensBundle),
    ("data", Use::Reads),
    ("valid", Use::Reads),
    ("perplexity", Use::Reads),
    ("prompt_file", Use::ReadsOrStdin),
    ("load_state", Use::Reads),
    ("reference", Use::Reads),
    ("metrics", Use::Reads),
    ("text_file", Use::Reads),
    ("bench_files", Use::Reads),
    ("eval_files", Use::Reads),
    ("jobs", Use::Opens),
    ("file", Use::Reads),
    ("directory", Use::Writes),
    ("output", Use::Writes),
    ("save_state", Use::WritesFile),
    ("samples", Use::WritesFile),
    ("svg", Use::WritesBeside),
    ("profile", Use::WritesInto),
];

/// What a call names is not there, or is not to be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Missing {
    #[error("{}: {NOTHING} (hint: `dijiang {command} --help` says what {argument} takes)", path.display())]
    File {
        path: PathBuf,
        command: String,
        /// As it is written in a call.
        argument: String,
    },
    #[error(
        "{}: {NOTHING} (hint: `dijiang convert {} -o BUNDLE` makes a bundle of the model of that name on the hub)",
        path.display(), path.display()
    )]
    Bundle { path: PathBuf },
    #[error(
        "{}: it is a file of the bundle {}, which {argument} would replace (hint: name another place)",
        path.display(), bundle.display()
    )]
    OfBundle { path: PathBuf, bundle: PathBuf, argument: String },
    #[error("{}: {reason}, where {argument} is written in the end (hint: name another place)", path.display())]
    ReadOnly { path: PathBuf, reason: String, argument: String },
    #[error("{}: there is no such directory, which {argument} writes into (hint: mkdir -p {})", path.display(), path.display())]
    Directory { path: PathBuf, argument: String },
}

/// Looks for every file that the command of the call will read, and for the directories that it writes into at its end.
pub(super) fn check(call: &ArgMatches) -> Result<(), Missing> {
    let Some((name, given)) = call.subcommand() else { return Ok(()) };
    let program = super::Cli::command();
    for (id, what) in PATHS {
        let what = &if ONE_FILE.contains(&name) { what.of_one_file() } else { *what };
        // Arguments of other commands are unknown to this one.
        let is_given =
            given.ids().any(|known| known == id) && given.value_source(id) == Some(ValueSource::CommandLine);
        let argument = || written(program.find_subcommand(name), id);
        for path in is_given.then(|| given.get_many::<PathBuf>(id)).flatten().into_iter().flatten() {
            if what.reads(path) && !path.exists() {
                let (path, command) = (path.clone(), name.to_owned());
                return Err(Missing::File { path, argument: argument(), command });
            }
            if what == &Use::OpensBundle && HubModel::named_by(path).is_some() {
                return Err(Missing::Bundle { path: path.clone() });
            }
            if let Some(bundle) =
                bundle_of(path).filter(|bundle| what.writes_one() && describes(bundle, path))
            {
                return Err(Missing::OfBundle {
                    path: path.clone(),
                    bundle: bundle.to_owned(),
                    argument: argument(),
                });
            }
            if let Some(directory) = what.directory(path).filter(|directory| !directory.is_dir()) {
                return Err(Missing::Directory { path: directory.to_owned(), argument: argument() });
            }
            if let Some(reason) = what.place(path).and_then(unwritable) {
                return Err(Missing::ReadOnly { path: path.clone(), reason, argument: argument() });
            }
        }
    }
    Ok(())
}

/// Why no file can be made in a directory, as far as the system tells.
fn unwritable(directory: &Path) -> Option<String> {
    match access(directory, Access::WRITE_OK) {
        Err(why @ (Errno::ACCESS | Errno::ROFS)) => Some(io::Error::from(why).to_string()),
        _ => None,
    }
}

/// Whether a bundle is made of a file, among others.
fn describes(bundle: &Path, file: &Path) -> bool {
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else { return false };
    let described =
        || Manifest::read(bundle).is_ok_and(|manifest| manifest.files.iter().any(|f| f.name == name));
    file.is_file() && (name == files::MANIFEST || described())
}

impl Use {
    fn of_one_file(self) -> Self {
        if self == Self::Writes { Self::WritesFile } else { self }
    }

    /// Whether the path must be there.
    fn reads(self, path: &Path) -> bool {
        self == Self::Reads || self == Self::ReadsOrStdin && path.as_os_str() != STDIN
    }

    /// The directory that must be there.
    fn directory(self, path: &Path) -> Option<&Path> {
        match self {
            Self::WritesInto => Some(path),
            Self::WritesBeside | Self::WritesFile => {
                path.parent().filter(|parent| !parent.as_os_str().is_empty())
            }
            Self::Opens | Self::OpensBundle | Self::Reads | Self::ReadsOrStdin | Self::Writes => None,
        }
    }

    /// Whether the path is that of what is written.
    fn writes_one(self) -> bool {
        matches!(self, Self::Writes | Self::WritesFile)
    }

    /// The directory in which something is made: the nearest that is there.
    fn place(self, path: &Path) -> Option<&Path> {
        let is_made_there = self.writes_one() || self == Self::WritesBeside;
        let nearest = path.ancestors().skip(1).find(|directory| directory.is_dir());
        // A name alone has no directory in it.
        let nearest = nearest.unwrap_or(Path::new("."));
        // What is there may be a pipe, whose directory does not matter.
        (is_made_there && !path.exists()).then_some(nearest)
    }
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
