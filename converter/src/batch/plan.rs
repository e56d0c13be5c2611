//! What a run of a file of jobs does.

use crate::report::outcome::Place;
use dijiang_format::dtype::DType;
use dijiang_format::target::Target;
use std::path::PathBuf;

/// All jobs of a file and of those it includes, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The directory of the file: outputs and records lie below it.
    pub root: PathBuf,
    pub jobs: Vec<Job>,
}

/// One bundle and what is done with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Unlike that of any other job.
    pub name: String,
    pub source: PathBuf,
    /// The bundle, which no other job writes.
    pub bundle: PathBuf,
    /// A recipe's name or file, as `convert --recipe` takes it.
    pub recipe: String,
    pub target: Target,
    pub dtype: Option<DType>,
    /// The first one converts.
    pub steps: Vec<Step>,
    pub thresholds: Vec<Threshold>,
    /// The job whose bundle thresholds compare with, by name. It runs first.
    pub baseline: Option<String>,
    pub place: Place,
}

/// One call of this program.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub command: StepCommand,
    /// What follows the command's name on its command line, the bundle and `--json` included.
    pub arguments: Vec<String>,
    /// Files and directories that it reads besides the bundle.
    pub reads: Vec<PathBuf>,
    /// Files and directories that it writes besides the bundle.
    pub writes: Vec<PathBuf>,
    pub place: Place,
}

/// The commands that may be steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepCommand {
    Convert,
    Calibrate,
    Finetune,
    Quantize,
    Verify,
    Eval,
    Bench,
}

impl StepCommand {
    pub const ALL: [Self; 7] = [
        Self::Convert,
        Self::Calibrate,
        Self::Finetune,
        Self::Quantize,
        Self::Verify,
        Self::Eval,
        Self::Bench,
    ];

    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Convert => "convert",
            Self::Calibrate => "calibrate",
            Self::Finetune => "finetune",
            Self::Quantize => "quantize",
            Self::Verify => "verify",
            Self::Eval => "eval",
            Self::Bench => "bench",
        }
    }

    /// The command of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }
}

/// A limit that fails a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    pub quantity: Quantity,
    pub limit: f64,
    pub place: Place,
}

/// What a limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// The largest relative error among the checks of a step `convert` or `verify`, at most.
    CheckError,
    /// Perplexity over that of the baseline's bundle, at most; told with its standard error over windows.
    PerplexityRatio,
    /// Accuracy less that of the baseline's bundle, at least (a negative number); told with its standard error over
    /// questions.
    AccuracyDifference,
    /// Decoded tokens per second over those of the baseline's bundle within the same step `bench`, at least.
    SpeedRatio,
    /// Bytes of state of one sequence, at most.
    StateBytes,
    /// Bytes of the bundle, at most.
    BundleBytes,
    /// Attentions that stay softmax, at most.
    SoftmaxSites,
}

impl Quantity {
    pub const ALL: [Self; 7] = [
        Self::CheckError,
        Self::PerplexityRatio,
        Self::AccuracyDifference,
        Self::SpeedRatio,
        Self::StateBytes,
        Self::BundleBytes,
        Self::SoftmaxSites,
    ];

    /// As a file of jobs calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CheckError => "check-error",
            Self::PerplexityRatio => "perplexity-ratio",
            Self::AccuracyDifference => "accuracy-difference",
            Self::SpeedRatio => "speed-ratio",
            Self::StateBytes => "state-bytes",
            Self::BundleBytes => "bundle-bytes",
            Self::SoftmaxSites => "softmax-sites",
        }
    }

    /// The quantity of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quantity| quantity.name() == name)
    }

    /// Whether it is of a bundle beside that of the baseline.
    pub fn compares(self) -> bool {
        matches!(self, Self::PerplexityRatio | Self::AccuracyDifference | Self::SpeedRatio)
    }
}
