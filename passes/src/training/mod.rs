//! Training as graphs: the loss and its gradients, and the optimiser's step, in ordinary operators.
//!
//! Parameters travel as a few flat vectors ([`parameters::ParameterLayout`]), inputs and outputs of the graphs, so
//! that they and the optimiser's moments can stay on a device and an update is a dozen operators whatever
//! the number of weights. Batch size and sequence length are numbers, so that shape arithmetic folds away.

mod finish;
pub mod lora;
pub mod loss;
pub mod optimizer;
pub mod parameters;
pub mod redraw;
pub mod samples;
pub mod specialize;
pub mod step;
mod sums;
pub mod transfer;

use crate::autodiff::AutodiffError;
use crate::canon::CanonError;
use crate::ir::patch::PatchError;

/// A training graph could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    #[error(transparent)]
    Patch(#[from] PatchError),
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    #[error("the graph has no output `logits` to train on (hint: encoders cannot be trained)")]
    NoLogits,
    #[error("input `{name}` ({ty}) is not known to training: expected tokens, a mask, positions or a past")]
    Input { name: String, ty: String },
    #[error(
        "nothing is left to train: no parameter of the graph is {wanted} (hint: `dijiang finetune --train all` trains the model's own)"
    )]
    NoParameters { wanted: String },
    #[error("no layer has a linear attention to train")]
    NoLinear,
    #[error("the loss does not depend on `{name}` (hint: it is selected for training, but nothing reads it)")]
    Unused { name: String },
}
