//! `dijiang calibrate BUNDLE --data PATH…`

use super::training::{Common, progress};
use super::{Failure, Outcome, numbers, show};
use crate::train::calibrate::{CalibrateOptions, RATE, calibrate};
use crate::train::schedule::{Schedule, Shape};
use dijiang_format::words::counted;
use std::path::PathBuf;

/// Fit what the conversion added to the attentions it replaced, before fine-tuning.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "dijiang calibrate <BUNDLE> --data <DATA>... [OPTIONS]",
    after_help = "Examples:
  dijiang calibrate bundle --data text.txt
  dijiang calibrate bundle --data train.u16 --valid valid.u16 --device cuda:0"
)]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Updates of what the conversion added
    #[arg(long, default_value_t = 150, allow_negative_numbers = true, value_parser = numbers::steps())]
    steps: usize,
    /// Leave out the fit of feature weights that comes before the updates
    #[arg(long)]
    no_fit: bool,
    /// Learning rate
    #[arg(long, default_value_t = RATE, allow_negative_numbers = true, value_parser = numbers::rate)]
    lr: f64,
    #[arg(long, default_value = "constant")]
    schedule: Shape,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let options = CalibrateOptions {
        sources: args.common.sources(),
        trainer: args.common.trainer(0.0, 1.0),
        schedule: Schedule { shape: args.schedule, rate: args.lr, warm_up: 0, steps: args.steps },
        seed: args.common.seed,
        fit: !args.no_fit,
    };
    let (bar, mut tell) = progress(args.steps, args.common.beyond(&args.bundle));
    let done = calibrate(&args.bundle, &options, &mut tell);
    bar.finish_and_clear();
    let done = done?;
    if args.json {
        show::object(&serde_json::to_value(&done)?);
        return Ok(Outcome::Fine);
    }
    match &done.fit {
        Some(fit) => show::line(&format!(
            "features of {} fitted{}; attention weight error {:.4}, before {:.4}",
            counted(fit.heads, "head"),
            if fit.kept { "" } else { ", and taken back as the loss rose" },
            fit.error,
            fit.error_before
        )),
        None if args.no_fit => {}
        None => show::line("the recipe's feature map has no weights to fit"),
    }
    if let Some((before, error)) = done.error_before.zip(done.error) {
        show::line(&format!("attention error {error:.4}, before {before:.4}"));
    }
    show::line(&format!(
        "{}, {}, {} in {:.0} s; validation perplexity {:.2}, before {:.2}",
        counted(done.steps, "step"),
        counted(done.tokens, "token"),
        counted(done.trained_parameters, "parameter"),
        done.seconds,
        done.valid_perplexity,
        done.valid_perplexity_before
    ));
    Ok(Outcome::Fine)
}
