//! `dijiang verify BUNDLE`

use super::bar::Bar;
use super::report_args::ReportArgs;
use super::{Failure, Outcome, numbers, show};
use crate::provenance::files::{FileStatus, compare_files};
use crate::report::outcome::Case;
use crate::verify::{Choice, VerifyOptions, verify};
use dijiang_runtime::Device;
use serde_json::json;
use std::path::PathBuf;

/// Prove a bundle: every form of the model in every runtime, against every other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang verify bundle
  dijiang verify bundle --runtime tract
  dijiang verify bundle --device cuda:0
  dijiang verify bundle --digests")]
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
    /// Threads that it may take; all cores where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// cpu or cuda:N: what `generate` runs is run there too, and compared with the plain form on the CPU
    #[arg(long)]
    device: Option<Device>,
    /// Compare every byte of the bundle with the digests in its dijiang.json, and name what differs, is missing or is not
    /// listed; nothing is run
    #[arg(long, conflicts_with_all = ["runtime", "seed", "reference", "threads", "device"])]
    digests: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let suite = args.bundle.display().to_string();
    args.report.of("verify", &args.bundle, args.json, |cases| match args.digests {
        true => digests(args, &suite, cases),
        false => prove(args, &suite, cases),
    })
}

fn prove(args: &Args, suite: &str, cases: &mut Vec<Case>) -> Result<Outcome, Failure> {
    numbers::take_threads(args.threads);
    let options = VerifyOptions {
        runtimes: args.runtime,
        seed: args.seed,
        reference: args.reference.clone(),
        threads: args.threads,
        device: args.device,
    };
    let found = verify(&args.bundle, &options, &mut Bar::new())?;
    cases.extend(found.cases(suite));
    if args.report.on_stdout() {
        return Ok(Outcome::of(found.ok));
    }
    if args.json {
        show::object(&json!({"checks": show::checks(&found), "skipped": found.skipped(), "ok": found.ok}));
    } else {
        show::verification(&found);
        show::line(&found.summary());
    }
    Ok(Outcome::of(found.ok))
}

fn digests(args: &Args, suite: &str, cases: &mut Vec<Case>) -> Result<Outcome, Failure> {
    let found = compare_files(&args.bundle)?;
    cases.extend(found.cases(suite));
    if args.report.on_stdout() {
        return Ok(Outcome::of(found.ok));
    }
    if args.json {
        show::object(&serde_json::to_value(&found)?);
        return Ok(Outcome::of(found.ok));
    }
    for file in &found.files {
        if file.status != FileStatus::Same {
            show::line(&format!("  {} {}", file.name, file.told()));
        }
    }
    show::line(&found.summary());
    Ok(Outcome::of(found.ok))
}
