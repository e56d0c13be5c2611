//! `dijiang finetune BUNDLE --data PATH…`

use super::{Failure, Outcome, show};
use crate::train::finetune::{FinetuneOptions, Scope, finetune};
use crate::train::metrics::Line;
use crate::train::schedule::{Schedule, Shape};
use crate::train::trainer::TrainerOptions;
use dijiang_passes::training::optimizer::AdamW;
use dijiang_passes::training::parameters::Precision;
use dijiang_passes::training::specialize::Size;
use dijiang_runtime::Device;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// Train a bundle on text until it has recovered from the conversion.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    bundle: PathBuf,
    /// Text files, .jsonl files of {"text": …}, or .u16 and .u32 files of token ids
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// The same to validate on; without it the last twentieth of the data is held out
    #[arg(long, num_args = 1..)]
    valid: Vec<PathBuf>,
    /// Updates of the weights
    #[arg(long, default_value_t = 250)]
    steps: usize,
    /// Tokens to train on, in place of --steps
    #[arg(long, conflicts_with = "steps")]
    tokens: Option<usize>,
    /// Rows per batch
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Batches per update
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    accumulate: u64,
    /// Tokens per row
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(2..))]
    context: u64,
    /// Learning rate
    #[arg(long, default_value_t = 6e-4)]
    lr: f64,
    /// Learning rate of what the conversion added, as a multiple
    #[arg(long, default_value_t = 5.0)]
    new_lr: f64,
    #[arg(long, default_value = "cosine")]
    schedule: Shape,
    /// Steps in which the learning rate rises
    #[arg(long, default_value_t = 10)]
    warm_up: usize,
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Gradients of a larger norm are scaled down to it
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Which weights to train
    #[arg(long, default_value = "all")]
    train: Scope,
    /// f32, or bf16 for matrix products on CUDA
    #[arg(long, default_value = "f32")]
    precision: Numbers,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads of an operator
    #[arg(long)]
    threads: Option<usize>,
    /// Order of the data
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Steps between validations
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    validate_every: u64,
    /// Windows to validate on, at most
    #[arg(long, default_value_t = 64)]
    validation_windows: usize,
    /// Go on from the last checkpoint
    #[arg(long)]
    resume: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Numbers {
    F32,
    Bf16,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let options = options(args);
    let bar = ProgressBar::new(options.schedule.steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left") {
        bar.set_style(style);
    }
    let done = finetune(&args.bundle, &options, &mut |line: &Line| tell(&bar, line));
    bar.finish_and_clear();
    let done = done?;
    if args.json {
        show::object(&serde_json::to_value(&done)?);
        return Ok(Outcome::Fine);
    }
    show::line(&format!(
        "{} steps, {} tokens, {} parameters in {:.0} s; validation perplexity {:.2}, before {:.2}",
        done.steps,
        done.tokens,
        done.trained_parameters,
        done.seconds,
        done.valid_perplexity,
        done.valid_perplexity_before
    ));
    Ok(Outcome::Fine)
}

fn tell(bar: &ProgressBar, line: &Line) {
    bar.set_position(line.step as u64);
    bar.set_message(format!("loss {:.3}, {:.0} tokens/s", line.loss, line.tokens_per_second));
    if let Some(perplexity) = line.valid_perplexity {
        bar.println(format!("step {}: validation perplexity {perplexity:.2}", line.step));
    }
}

fn options(args: &Args) -> FinetuneOptions {
    let per_step = (args.batch * args.accumulate * args.context) as usize;
    let steps = args.tokens.map_or(args.steps, |tokens| tokens.div_ceil(per_step));
    let optimizer = AdamW {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: args.weight_decay,
        new_rate: args.new_lr,
    };
    FinetuneOptions {
        data: args.data.clone(),
        valid: args.valid.clone(),
        scope: args.train,
        trainer: TrainerOptions {
            size: Size { batch: args.batch, sequence: args.context },
            precision: match args.precision {
                Numbers::F32 => Precision::F32,
                Numbers::Bf16 => Precision::Bf16,
            },
            device: args.device,
            threads: args.threads,
            optimizer,
            clip_norm: args.clip,
            accumulate: args.accumulate as usize,
        },
        schedule: Schedule { shape: args.schedule, rate: args.lr, warm_up: args.warm_up.min(steps), steps },
        seed: args.seed,
        checkpoint_every: args.checkpoint_every as usize,
        validate_every: args.validate_every as usize,
        validation_windows: args.validation_windows,
        resume: args.resume,
    }
}
