//! `dijiang finetune BUNDLE --data PATH…`

use super::training::{Common, progress};
use super::{Failure, Outcome, numbers, show};
use crate::train::finetune::{FinetuneOptions, RATE, Scope, WARM_UP, finetune};
use crate::train::schedule::{Schedule, Shape};
use crate::train::teacher::{TeacherOptions, Wanted};
use crate::train::trainer::{NEW_RATE, WEIGHT_DECAY};
use dijiang_format::words::counted;
use std::path::PathBuf;

/// Train a bundle on text until it has recovered from the conversion.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "dijiang finetune <BUNDLE> --data <DATA>... [OPTIONS]",
    after_help = "Examples:
  dijiang finetune bundle --data text.txt --steps 500
  dijiang finetune bundle --data train.u16 --train lora:8 --teacher none
  dijiang finetune bundle --data text.txt --resume"
)]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Updates of the weights
    #[arg(long, default_value_t = 250, allow_negative_numbers = true, value_parser = numbers::steps())]
    steps: usize,
    /// Tokens to train on, in place of --steps
    #[arg(long, conflicts_with = "steps", allow_negative_numbers = true, value_parser = numbers::count())]
    tokens: Option<usize>,
    /// Learning rate
    #[arg(long, default_value_t = RATE, allow_negative_numbers = true, value_parser = numbers::rate)]
    lr: f64,
    /// Learning rate of what the conversion added, as a multiple
    #[arg(long, default_value_t = NEW_RATE, allow_negative_numbers = true, value_parser = numbers::rate)]
    new_lr: f64,
    #[arg(long, default_value = "linear")]
    schedule: Shape,
    /// Steps in which the learning rate rises
    #[arg(long, default_value_t = WARM_UP, allow_negative_numbers = true, value_parser = numbers::steps())]
    warm_up: usize,
    #[arg(long, default_value_t = WEIGHT_DECAY, allow_negative_numbers = true, value_parser = numbers::rate)]
    weight_decay: f64,
    /// Which weights to train: all, attention (those modules), dijiang (what the conversion added), or lora:RANK (that,
    /// and additions of a rank to the linear layers, which become part of them in the end)
    #[arg(long, default_value = "all")]
    train: Scope,
    /// A bundle whose softmax model teaches, `self` for this bundle's own as it is before the run, or `none`. `auto` is `self`
    /// where the bundle has new attentions and its softmax model was not trained yet, and `none` otherwise
    #[arg(long, value_name = "BUNDLE|auto|self|none", default_value = "auto")]
    teacher: Wanted,
    /// How much of KL(teacher ‖ model) is added to the loss where somebody teaches [default: 0.5]
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::rate)]
    teacher_weight: Option<f64>,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 100, allow_negative_numbers = true, value_parser = numbers::count64())]
    checkpoint_every: u64,
    /// Steps between validations
    #[arg(long, default_value_t = 50, allow_negative_numbers = true, value_parser = numbers::count64())]
    validate_every: u64,
    /// Draw random features (those of the recipe `performer`) anew every so many steps; the last stay in the bundle
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true, value_parser = numbers::count())]
    redraw: Option<usize>,
    /// Go on from the last checkpoint
    #[arg(long)]
    resume: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let steps = args.tokens.map_or(args.steps, |tokens| tokens.div_ceil(args.common.tokens_per_step()));
    let options = FinetuneOptions {
        sources: args.common.sources(),
        scope: args.train,
        trainer: args.common.trainer(args.weight_decay, args.new_lr),
        teacher: TeacherOptions { wanted: args.teacher.clone(), weight: args.teacher_weight },
        schedule: Schedule { shape: args.schedule, rate: args.lr, warm_up: args.warm_up.min(steps), steps },
        seed: args.common.seed,
        redraw: args.redraw,
        checkpoint_every: args.checkpoint_every as usize,
        validate_every: args.validate_every as usize,
        resume: args.resume,
    };
    let (bar, mut tell) = progress(steps, args.common.beyond(&args.bundle));
    let done = finetune(&args.bundle, &options, &mut tell);
    bar.finish_and_clear();
    let done = done?;
    if args.json {
        show::object(&serde_json::to_value(&done)?);
        return Ok(Outcome::Fine);
    }
    show::line(&match &done.teacher {
        Some(teacher) => format!("teacher: {teacher}"),
        None => "no teacher".to_owned(),
    });
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
