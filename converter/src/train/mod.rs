//! Training a bundle: the graphs of `dijiang_passes::training` run by ONNX Runtime over data, and the trained
//! weights put back where the serving graphs read them.

use crate::bundle::lock::LockError;
use crate::onnx::export::ExportError;
use crate::onnx::import::ImportError;
use crate::provenance::opened::NotAsWritten;
use crate::report::chart::ChartError;
use crate::serving::OpenError;
use dijiang_format::manifest::ManifestError;
use dijiang_format::words::counted;
use dijiang_passes::attention::rewrite::RewriteError;
use dijiang_passes::canon::CanonError;
use dijiang_passes::ir::tensor::ReadError;
use dijiang_passes::training::TrainingError;
use dijiang_passes::training::specialize::Size;
use dijiang_runtime::{RuntimeError, TensorError, temporary};
use indicatif::DecimalBytes;
use std::path::{Path, PathBuf};

pub mod calibrate;
pub mod checkpoint;
pub mod data;
mod disk;
pub mod finetune;
pub mod fit;
pub mod identity;
mod memory;
pub mod metrics;
pub mod plot;
mod redraw;
pub mod schedule;
pub mod teacher;
pub mod trainer;
pub mod weights;

/// Removes what killed runs left in a bundle. From here on an interruption says what it has.
fn begin(bundle: &Path) -> Result<(), TrainError> {
    temporary::note_kept(bundle, "has its weights of before");
    for directory in [bundle, &bundle.join(finetune::DIR)].into_iter().filter(|d| d.is_dir()) {
        temporary::clean(directory)
            .map_err(|source| TrainError::Io { path: directory.to_owned(), source })?;
    }
    Ok(())
}

/// Training failed. The weights in the bundle are those of the last time they were written.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Picture(#[from] ChartError),
    #[error(transparent)]
    Graph(#[from] TrainingError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Open(Box<OpenError>),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Data(#[from] data::DataError),
    #[error(transparent)]
    Weights(#[from] weights::WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "step {step}: the loss is {loss} and the gradients' norm {gradient_norm} (hint: a lower --lr; {kept})",
        kept = "the weights are those before this step"
    )]
    NotFinite { step: usize, loss: f64, gradient_norm: f64 },
    #[error("after {when}: {source}")]
    Diverged { when: String, source: weights::WeightsError },
    #[error(
        "after {when}: the loss on what is validated is {loss}, so nothing was written (hint: a lower --lr)"
    )]
    Worthless { when: String, loss: f64 },
    #[error(
        "a batch of {} × {} tokens takes at least {:.1} GB of memory, and {:.1} GB are free (hint: a smaller --batch or --context; --accumulate adds rows to an update without memory)",
        size.batch, size.sequence, *needed as f64 / 1e9, *free as f64 / 1e9
    )]
    Memory { size: Size, needed: u64, free: u64 },
    #[error(
        "{}: the trained weights and their checkpoints take {} beside it, and {} are free (hint: make room, or copy the bundle to another disk)",
        path.display(), DecimalBytes(*needed), DecimalBytes(*free)
    )]
    Disk { path: PathBuf, needed: u64, free: u64 },
    #[error(
        "--redraw: the feature map `{map}` has no features that are drawn at random (hint: leave --redraw out; `prf`, the map of the recipe `performer`, has them)"
    )]
    NothingDrawn { map: String },
    #[error("--train lora:{rank}: the linear layers of this model have a rank of {most} at most")]
    Rank { rank: u64, most: u64 },
    /// The bundle's own softmax model is not the one that was converted any more.
    #[error(
        "--teacher self: an earlier run trained {} of the softmax model in {}, `{tensor}` the first, so that it is no longer the model that came; expected weights as they were converted (hint: `dijiang convert SRC -o TEACHER --recipe softmax`, then `--teacher TEACHER`)",
        counted(*count, "tensor"), bundle.display()
    )]
    TeacherTrained { bundle: PathBuf, tensor: String, count: usize },
    #[error(
        "--teacher self: the attention of the bundle came with its checkpoint, and there is no softmax model that could teach (hint: name another bundle with --teacher, or nobody with --teacher none)"
    )]
    NoSoftmax,
    #[error(
        "{}: its attention came with its checkpoint, and there is no softmax model that it could be calibrated to (hint: `dijiang finetune {}` trains it)",
        bundle.display(), bundle.display()
    )]
    OwnAttention { bundle: PathBuf },
    #[error(
        "--teacher-weight {weight}: nobody teaches (hint: name a teacher with --teacher BUNDLE or --teacher self, or leave --teacher-weight out)"
    )]
    NobodyTeaches { weight: f64 },
    #[error(
        "{}: it has {}, expected the {expected} of the bundle it is to teach (hint: a bundle of the same model)",
        bundle.display(), counted(*found, "token")
    )]
    TeacherVocabulary { bundle: PathBuf, found: u64, expected: u64 },
    #[error("the model has {}, and --context asks for {context}", counted(*positions, "position"))]
    Positions { positions: u64, context: usize },
    #[error("--validation-windows 0: without a window there is nothing to validate on (hint: 1 or more)")]
    NoValidation,
}

impl From<OpenError> for TrainError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}
