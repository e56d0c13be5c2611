//! `dijiang calibrate BUNDLE --data PATH…`

use super::training::{Common, progress};
use super::{Failure, Outcome, show};
use crate::train::calibrate::{CalibrateOptions, calibrate};
use crate::train::schedule::{Schedule, Shape};
use std::path::PathBuf;

/// Fit what the conversion added to the attentions it replaced, before fine-tuning.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    bundle: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Updates of what the conversion added
    #[arg(long, default_value_t = 150)]
    steps: usize,
    /// Learning rate
    #[arg(long, default_value_t = 1e-2)]
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
    };
    let (bar, mut tell) = progress(args.steps);
    let done = calibrate(&args.bundle, &options, &mut tell);
    bar.finish_and_clear();
    let done = done?;
    if args.json {
        show::object(&serde_json::to_value(&done)?);
        return Ok(Outcome::Fine);
    }
    show::line(&format!(
        "{} steps, {} tokens, {} parameters in {:.0} s; attention error {:.4}, before {:.4}; validation perplexity {:.2}, before {:.2}",
        done.steps,
        done.tokens,
        done.trained_parameters,
        done.seconds,
        done.error,
        done.error_before,
        done.valid_perplexity,
        done.valid_perplexity_before
    ));
    Ok(Outcome::Fine)
}
