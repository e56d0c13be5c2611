//! Weights of fewer bits than the source's.

use crate::target::Target;
use dijiang_passes::canon::{CanonError, canonicalize};
use dijiang_passes::int4::{BLOCK, quantize};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::PatchError;
use serde::{Deserialize, Serialize};

/// How the weights of linear layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// Four bits, in blocks of 32 with a scale and a zero point
    Int4,
}

impl Quantization {
    pub fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
        }
    }
}

/// The weights cannot be stored so.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    #[error(
        "int4 weights are read by ONNX Runtime's own operators, which target `{0}` has not (hint: --target ort)"
    )]
    Target(Target),
    #[error(
        "no weight is read by linear layers alone and has inputs in blocks of {BLOCK} (hint: leave --weights out)"
    )]
    Nothing,
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// Quantises a source graph, and returns it as it was, cleaned up.
pub fn apply(how: Quantization, graph: &mut Graph, target: Target) -> Result<Graph, QuantizeError> {
    if target != Target::Ort {
        return Err(QuantizeError::Target(target));
    }
    canonicalize(graph)?;
    let float = graph.clone();
    let quantized = match how {
        Quantization::Int4 => quantize(graph)?,
    };
    if quantized == 0 {
        return Err(QuantizeError::Nothing);
    }
    Ok(float)
}
