//! Weights of fewer bits than the source's, from a source graph.

use dijiang_format::quantization::Quantization;
use dijiang_format::target::Target;
use dijiang_passes::canon::{CanonError, canonicalize};
use dijiang_passes::int4::{BLOCK, quantize};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::patch::PatchError;
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

/// Whether a target has operators that read weights of fewer bits.
pub fn is_read_by(target: Target) -> bool {
    target == Target::Ort
}

/// Quantises a source graph, and returns it as it was, cleaned up.
pub fn apply(how: Quantization, graph: &mut Graph, target: Target) -> Result<Graph, QuantizeError> {
    if !is_read_by(target) {
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
