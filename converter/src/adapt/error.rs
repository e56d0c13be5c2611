//! What ends an adaptation.

use crate::convert::ConvertError;
use crate::convert::source::SourceError;
use crate::eval::EvalError;
use crate::onnx::export::ExportError;
use crate::recipes::RecipeFileError;
use crate::train::TrainError;
use crate::verify::VerifyError;
use dijiang_passes::ir::patch::PatchError;
use dijiang_runtime::RuntimeError;
use indicatif::DecimalBytes;
use std::path::PathBuf;

/// The first line of a value.
fn shortened(value: &str) -> &str {
    value.lines().next().unwrap_or_default()
}

/// An adaptation ended early. What was done before stays in the bundle.
#[derive(Debug, thiserror::Error)]
pub enum AdaptError {
    #[error(transparent)]
    Source(Box<SourceError>),
    #[error(transparent)]
    Convert(Box<ConvertError>),
    #[error(transparent)]
    Recipe(#[from] RecipeFileError),
    #[error(transparent)]
    Yaml(#[from] serde_yaml::Error),
    #[error(transparent)]
    Train(Box<TrainError>),
    #[error(transparent)]
    Eval(Box<EvalError>),
    #[error(transparent)]
    Verify(Box<VerifyError>),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Graph(#[from] PatchError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{}: the bundle and its training take up to {}, and {} are free (hint: choose another disk with --output)",
        bundle.display(), DecimalBytes(*needed), DecimalBytes(*free)
    )]
    Disk { bundle: PathBuf, needed: u64, free: u64 },
    #[error("{}: it cannot be read: {source} (hint: --force begins anew)", path.display())]
    Record { path: PathBuf, source: serde_json::Error },
    #[error(
        "{}: it is there, and `dijiang adapt` did not begin it (hint: `dijiang finetune {}` trains a bundle, which --force replaces; anything else is never replaced, so name another place)",
        bundle.display(), bundle.display()
    )]
    Exists { bundle: PathBuf },
    #[error(
        "{}: it was begun with {option} {}, and this call says {} (hint: the same options go on where it was; --force begins anew)",
        bundle.display(), shortened(was), shortened(is)
    )]
    Other { bundle: PathBuf, option: String, was: String, is: String },
}

/// Errors of the parts are large, and the way out is seldom taken.
macro_rules! boxed {
    ($($variant:ident: $error:ty),* $(,)?) => {
        $(impl From<$error> for AdaptError {
            fn from(error: $error) -> Self {
                Self::$variant(Box::new(error))
            }
        })*
    };
}

boxed!(Source: SourceError, Convert: ConvertError, Train: TrainError, Eval: EvalError, Verify: VerifyError);
