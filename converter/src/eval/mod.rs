//! Measuring bundles: perplexity on text, questions with several answers by their likelihood, and tasks of random tokens.

use crate::bundle::softmax_model::SoftmaxError;
use crate::convert::ConvertError;
use crate::serving::OpenError;
use crate::train::data::DataError;
use dijiang_format::manifest::ManifestError;
use dijiang_format::words::counted;
use dijiang_passes::attention::rewrite::RewriteError;
use dijiang_passes::canon::CanonError;
use dijiang_passes::training::TrainingError;
use dijiang_runtime::RuntimeError;

pub mod answers;
mod branches;
mod evaluator;
mod question;
mod scoring;
mod source;
pub mod statistics;
mod synthetic;
pub mod table;
pub mod tasks;

pub use evaluator::{EvalOptions, Evaluator, Figure};
pub use question::{Asked, Question};
pub use source::TaskFileError;
pub use synthetic::{SYNTHETIC, Synthetic};

/// A bundle cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Open(Box<OpenError>),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("--branches: {0}")]
    Softmax(#[from] SoftmaxError),
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Training(#[from] TrainingError),
    #[error(transparent)]
    Write(Box<ConvertError>),
    #[error("a directory for the graph without a branch cannot be made: {source}")]
    Scratch { source: std::io::Error },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("the model has {}, and --context asks for {context}", counted(*positions, "position"))]
    Positions { positions: u64, context: u64 },
    #[error(
        "--max-tokens {most}: a row takes --context {context} tokens, and only whole rows are measured (hint: --max-tokens {context} or more, or a smaller --context)"
    )]
    MaxTokens { most: usize, context: usize },
    #[error("--task {what}: --context is {length}, expected 8 tokens or more (hint: --context 256)")]
    Length { what: &'static str, length: usize },
    #[error(
        "--task recall: rows of {length} tokens take {keys} different keys, and the model knows {} (hint: a smaller --context)",
        counted(*vocabulary, "token")
    )]
    Keys { length: usize, keys: usize, vocabulary: usize },
}

impl From<ConvertError> for EvalError {
    fn from(error: ConvertError) -> Self {
        Self::Write(Box::new(error))
    }
}

impl From<OpenError> for EvalError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}
