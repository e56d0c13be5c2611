//! What the training subcommands share.

use super::{bar, numbers, show};
use crate::bundle::described;
use crate::train::finetune::Sources;
use crate::train::metrics::Line;
use crate::train::trainer::{BATCH, CLIP_NORM, CONTEXT, TrainerOptions};
use dijiang_passes::training::optimizer::AdamW;
use dijiang_passes::training::parameters::Precision;
use dijiang_passes::training::specialize::Size;
use dijiang_runtime::Device;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Text files, .jsonl files of {"text": …}, or .u16 and .u32 files of token ids
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// The same to validate on; without it the last twentieth of the data is held out
    #[arg(long, num_args = 1..)]
    valid: Vec<PathBuf>,
    /// Windows to validate on, at most
    #[arg(long, default_value_t = 64, allow_negative_numbers = true, value_parser = numbers::count())]
    validation_windows: usize,
    /// Rows per batch
    #[arg(long, default_value_t = BATCH, allow_negative_numbers = true, value_parser = numbers::count64())]
    batch: u64,
    /// Batches per update
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = numbers::batches())]
    accumulate: u64,
    /// Tokens per row
    #[arg(long, default_value_t = CONTEXT, allow_negative_numbers = true, value_parser = numbers::context())]
    context: u64,
    /// Gradients of a larger norm are scaled down to it
    #[arg(long, default_value_t = CLIP_NORM, allow_negative_numbers = true, value_parser = numbers::norm)]
    clip: f64,
    /// f32, or bf16 for matrix products on CUDA
    #[arg(long, default_value = "f32")]
    precision: Numbers,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads of an operator
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// On a GPU, launch every kernel on its own instead of recording them once
    #[arg(long)]
    no_cuda_graph: bool,
    /// A directory for ONNX Runtime's profiles of the graphs
    #[arg(long)]
    profile: Option<PathBuf>,
    /// Order of the data
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Numbers {
    F32,
    Bf16,
}

impl Common {
    pub(super) fn sources(&self) -> Sources {
        Sources {
            data: self.data.clone(),
            valid: self.valid.clone(),
            validation_windows: self.validation_windows,
        }
    }

    pub(super) fn tokens_per_step(&self) -> usize {
        self.batch.saturating_mul(self.accumulate).saturating_mul(self.context) as usize
    }

    /// What is said of rows that are longer than the texts that the model was made for.
    pub(super) fn beyond(&self, bundle: &Path) -> Option<String> {
        let said = described::beyond(described::positions(bundle), self.context)?;
        Some(format!("{}: {said}", bundle.display()))
    }

    pub(super) fn trainer(&self, weight_decay: f64, new_rate: f64) -> TrainerOptions {
        TrainerOptions {
            size: Size { batch: self.batch, sequence: self.context },
            precision: match self.precision {
                Numbers::F32 => Precision::F32,
                Numbers::Bf16 => Precision::Bf16,
            },
            device: self.device,
            threads: self.threads,
            cuda_graph: !self.no_cuda_graph && self.profile.is_none(),
            profile: self.profile.clone(),
            optimizer: AdamW { weight_decay, new_rate, ..TrainerOptions::default().optimizer },
            clip_norm: self.clip,
            accumulate: self.accumulate as usize,
        }
    }
}

/// A bar over the steps, and what moves it. A warning comes with the first.
pub(super) fn progress(steps: usize, warning: Option<String>) -> (ProgressBar, impl FnMut(&Line)) {
    let bar = ProgressBar::with_draw_target(Some(steps as u64), bar::target());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left") {
        bar.set_style(style);
    }
    let shown = bar.clone();
    let (mut lines, mut warning) = (bar::Lines::new(), warning);
    let tell = move |line: &Line| {
        if let Some(warning) = warning.take() {
            shown.suspend(|| show::warning(&warning));
        }
        shown.set_position(line.step as u64);
        let left = || shown.eta().as_secs();
        lines.tell(|| {
            format!("step {} of {steps}: loss {:.3}, about {} s left", line.step, line.loss, left())
        });
        shown.set_message(format!("loss {:.3}, {:.0} tokens/s", line.loss, line.tokens_per_second));
        if let Some(perplexity) = line.valid_perplexity {
            shown.println(format!("step {}: validation perplexity {perplexity:.2}", line.step));
        }
    };
    (bar, tell)
}
