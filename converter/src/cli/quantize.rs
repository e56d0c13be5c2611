//! `dijiang quantize BUNDLE -o OUT`

use super::bar::Bar;
use super::{Failure, Outcome, numbers, show};
use crate::convert::Converted;
use crate::convert::requantize::{RequantizeOptions, requantize};
use crate::verify::VerifyOptions;
use dijiang_format::quantization::Quantization;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Make a bundle anew with the weights of its linear layers in fewer bits, and prove it.
///
/// For bundles that were trained: what the conversion added, and training changed, stays as it is. BUNDLE is not
/// touched. The new one is served, but not trained.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang quantize bundle -o bundle-int4
  dijiang quantize bundle -o bundle-int4 --checksums --force")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    /// The directory to make
    #[arg(short, long)]
    output: PathBuf,
    /// int4
    #[arg(long, default_value = "int4")]
    weights: Quantization,
    /// Seed of the checks' prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads that it may take; all cores where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Replace a bundle that is there
    #[arg(long)]
    force: bool,
    /// Write SHA256SUMS too: the digests of all files, as `sha256sum -c` reads them
    #[arg(long)]
    checksums: bool,
    /// Write without a proof
    #[arg(long)]
    no_verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    numbers::take_threads(args.threads);
    let verify = VerifyOptions { seed: args.seed, threads: args.threads, ..VerifyOptions::default() };
    let options = RequantizeOptions {
        weights: args.weights,
        force: args.force,
        checksums: args.checksums,
        verify: (!args.no_verify).then_some(verify),
    };
    let start = Instant::now();
    let made = requantize(&args.bundle, &args.output, &options, &mut Bar::new())?;
    made.warnings.iter().for_each(|warning| show::warning(warning));
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        print_json(args, &made, seconds);
    } else {
        print_text(args, &made, seconds);
    }
    Ok(Outcome::of(made.written))
}

fn print_json(args: &Args, made: &Converted, seconds: f64) {
    show::object(&json!({
        "bundle": args.output,
        "dtype": made.dtype.name(),
        "weights": args.weights.name(),
        "seconds": seconds,
        "bytes_written": made.bytes_written,
        "warnings": made.warnings,
        "checks": made.verification.as_ref().map_or(json!([]), show::checks),
        "skipped": made.verification.as_ref().map_or(json!([]), |v| json!(v.skipped())),
        "written": made.written,
    }));
}

fn print_text(args: &Args, made: &Converted, seconds: f64) {
    let (bundle, output) = (args.bundle.display(), args.output.display());
    show::line(&format!("{output}: {bundle} with {} weights", args.weights.name()));
    if let Some(verification) = &made.verification {
        show::proof(verification);
    }
    show::line(&format!("{:.1} MB in {seconds:.1} s", made.bytes_written as f64 / 1e6));
    if !made.written {
        show::note("a check failed: nothing was written (--no-verify writes it all the same)");
    }
}
