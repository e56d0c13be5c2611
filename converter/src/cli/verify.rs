//! `dijiang verify BUNDLE`

use super::bar::Bar;
use super::{Failure, Outcome, show};
use crate::verify::{Choice, VerifyOptions, verify};
use serde_json::json;
use std::path::PathBuf;

/// Prove a bundle: every form of the model in every runtime, against every other.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
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
