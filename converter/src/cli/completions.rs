//! `dijiang completions SHELL`

use super::{Cli, Failure, Outcome, show};
use clap::CommandFactory as _;
use clap_complete::Shell;

/// Print what makes a shell complete the commands and options of dijiang.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang completions bash > ~/.local/share/bash-completion/completions/dijiang
  dijiang completions zsh > ~/.zfunc/_dijiang
  dijiang completions fish > ~/.config/fish/completions/dijiang.fish")]
pub(super) struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dijiang", &mut script);
    show::stream(&String::from_utf8(script)?);
    Ok(Outcome::Fine)
}
