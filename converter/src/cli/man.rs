//! `dijiang man [DIR]`

use super::os::FileError;
use super::{Cli, Failure, Outcome, show};
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use dijiang_runtime::write_file;
use std::path::PathBuf;

/// Print the manual page, or write that of every command into a directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang man
  dijiang man ~/.local/share/man/man1")]
pub(super) struct Args {
    /// Where dijiang.1, dijiang-convert.1 and so on are to be
    directory: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let Some(directory) = &args.directory else {
        show::stream(&page(program)?.1);
        return Ok(Outcome::Fine);
    };
    std::fs::create_dir_all(directory).map_err(FileError::of(directory))?;
    let commands: Vec<Command> = program.get_subcommands().cloned().chain([program.clone()]).collect();
    let count = commands.len();
    for command in commands {
        let (name, text) = page(command)?;
        let path = directory.join(name);
        write_file(&path, text.as_bytes()).map_err(FileError::of(&path))?;
    }
    show::line(&format!("{}: {count} pages", directory.display()));
    Ok(Outcome::Fine)
}

/// The name of a command's page, and the page.
fn page(command: Command) -> Result<(String, String), Failure> {
    let man = Man::new(command);
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok((man.get_filename(), String::from_utf8(text)?))
}
