//! `dijiang verify BUNDLE`

use super::bar::Bar;
use super::{Failure, Outcome, show};
use crate::provenance::files::{FileStatus, compare_files};
use crate::verify::{Choice, VerifyOptions, verify};
use serde_json::json;
use std::path::PathBuf;

/// Prove a bundle: every form of the model in every runtime, against every other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang verify bundle
  dijiang verify bundle --runtime tract
  dijiang verify bundle --digests")]
pub(super) struct Args {
    bundle: PathBuf,
    /// ort, tract or all
    #[arg(long, default_value = "all")]
    runtime: Choice,
    /// Seed of the prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A safetensors file with input_ids and the source's own logits for them
    #[arg(long)]
    reference: Option<PathBuf>,
    /// Compare every byte of the bundle with the digests in its dijiang.json, and name what differs, is missing or is not
    /// listed; nothing is run
    #[arg(long, conflicts_with_all = ["runtime", "seed", "reference"])]
    digests: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    if args.digests {
        return digests(args);
    }
    let options =
        VerifyOptions { runtimes: args.runtime, seed: args.seed, reference: args.reference.clone() };
    let found = verify(&args.bundle, &options, &mut Bar::new())?;
    if args.json {
        show::object(&json!({"checks": show::checks(&found), "skipped": found.skipped(), "ok": found.ok}));
    } else {
        show::verification(&found);
        show::line(&found.summary());
    }
    Ok(Outcome::of(found.ok))
}

fn digests(args: &Args) -> Result<Outcome, Failure> {
    let found = compare_files(&args.bundle)?;
    if args.json {
        show::object(&serde_json::to_value(&found)?);
        return Ok(Outcome::of(found.ok));
    }
    for file in &found.files {
        let what = match file.status {
            FileStatus::Same => continue,
            FileStatus::Differs => "differs",
            FileStatus::Missing => "is missing",
            FileStatus::Unlisted => "is not listed in dijiang.json",
            FileStatus::Unrecorded => "has no recorded digest",
        };
        let reason = file.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        show::line(&format!("  {} {what}{reason}", file.name));
    }
    show::line(&found.summary());
    Ok(Outcome::of(found.ok))
}
