//! `dijiang info BUNDLE`

use super::{Failure, Outcome, show};
use crate::provenance::info::info;
use std::path::PathBuf;

/// Show what a bundle is: what it was made from, how, what was checked, and what training changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang info bundle
  dijiang info bundle --json")]
pub(super) struct Args {
    bundle: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let found = info(&args.bundle)?;
    if args.json {
        show::object(&serde_json::to_value(&found)?);
        return Ok(Outcome::Fine);
    }
    for (name, fact) in found.lines() {
        show::line(&format!("{name:<12}{fact}"));
    }
    Ok(Outcome::Fine)
}
