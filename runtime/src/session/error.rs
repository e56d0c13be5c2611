//! Everything that can go wrong here, each case printed as one line that says where and what was expected.

use std::path::{Path, PathBuf};

use crate::session::tensor::TensorError;
use dijiang_format::dtype::DType;
use dijiang_format::manifest::ManifestError;
use dijiang_format::place::NOTHING;
use dijiang_format::serving::Device;

/// An error of a runtime, a decoder or a generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The manifest of a bundle cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No ONNX Runtime library lies anywhere we look.
    #[error(
        "ONNX Runtime was not found (looked in {looked}); install it with `pip install {package}`, or point ORT_DYLIB_PATH at libonnxruntime"
    )]
    LibraryMissing {
        /// The places that were searched, in order.
        looked: String,
        /// The package, with its version, that brings the library.
        package: String,
    },
    /// A library was found and speaks an older interface than this program.
    #[error(
        "ONNX Runtime {found} at {} is too old, {needed} or newer is needed; `pip install {package}` brings one", path.display()
    )]
    LibraryTooOld {
        /// The library file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest version that works.
        needed: String,
        /// The package, with its version, that brings a new enough library.
        package: String,
    },
    /// A file was found that is no usable ONNX Runtime library.
    #[error("{} is not a usable ONNX Runtime library: {reason}; point ORT_DYLIB_PATH at one that is", path.display())]
    LibraryBad {
        /// The library file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The runtime cannot compute on this device.
    #[error("{runtime} cannot use {device}: {reason}; {hint}")]
    Device {
        /// The runtime's name.
        runtime: &'static str,
        /// The device asked for.
        device: Device,
        /// What the runtime said.
        reason: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A model file cannot be read, parsed or prepared.
    #[error("{runtime} cannot load {}: {reason}", model.display())]
    Load {
        /// The runtime's name.
        runtime: &'static str,
        /// The model file.
        model: PathBuf,
        /// What the runtime said.
        reason: String,
    },
    /// The model was loaded and running it failed.
    #[error("{runtime} failed to run {}: {reason}", model.display())]
    Run {
        /// The runtime's name.
        runtime: &'static str,
        /// The model file.
        model: PathBuf,
        /// What the runtime said.
        reason: String,
    },
    /// Numbers could not be brought to a device or back.
    #[error("a tensor could not be copied between host and device: {reason}")]
    Copy {
        /// What the runtime said, or what does not fit.
        reason: String,
    },
    /// The caller left out an input that the model declares.
    #[error("input `{name}` is missing; the model takes {known}")]
    MissingInput {
        /// The missing input.
        name: String,
        /// All inputs of the model.
        known: String,
    },
    /// The caller gave an input that the model does not declare.
    #[error("the model has no input `{name}`; it takes {known}")]
    UnknownInput {
        /// The input given.
        name: String,
        /// All inputs of the model.
        known: String,
    },
    /// The caller gave the same input twice.
    #[error("input `{name}` is given twice; give each input once")]
    RepeatedInput {
        /// The input given.
        name: String,
    },
    /// An input has the wrong element type.
    #[error("input `{name}` is {found}, the model takes {expected}")]
    InputDtype {
        /// The input.
        name: String,
        /// The model's element type.
        expected: DType,
        /// The tensor's element type.
        found: DType,
    },
    /// An input has the wrong rank or a wrong fixed dimension.
    #[error("input `{name}` has shape {found:?}, the model takes {expected}")]
    InputShape {
        /// The input.
        name: String,
        /// The declared shape, dynamic dimensions by name.
        expected: String,
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// A host tensor cannot be made, cut or read as asked.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The graph cannot be driven as a causal language model.
    #[error("{place} does not fit a causal decoder: {reason}")]
    NotADecoder {
        /// The input or output at fault.
        place: String,
        /// What was expected of it.
        reason: String,
    },
    /// Token ids, masks or states handed to a decoder do not fit it.
    #[error("{place}: {reason}")]
    BadCall {
        /// The argument at fault.
        place: &'static str,
        /// What was expected of it.
        reason: String,
    },
    /// The model computed something that is not a number.
    #[error(
        "logits hold {value} at token id {id}; the model diverged or its dtype overflows, try --dtype f32"
    )]
    BadLogits {
        /// The first offending token id.
        id: usize,
        /// NaN, or infinity where every candidate is lost.
        value: f32,
    },
    /// A directory is no bundle that can be served.
    #[error("{}: {reason} (hint: serve a directory that `dijiang convert` wrote)", path.display())]
    Bundle {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A saved state cannot be written, read or taken by this model.
    #[error("state {}: {reason} (hint: a state fits the model that wrote it)", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A file cannot be written.
    #[error("{}: it cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A saved state was written by another model.
    #[error(
        "state {}: the model of bundle `{writer}` wrote it, and `{}` holds another (hint: `dijiang generate {} --prompt TEXT --save-state {}` writes one of this model)",
        path.display(), bundle.display(), bundle.display(), path.display()
    )]
    StateOfAnother {
        /// The file.
        path: PathBuf,
        /// What the bundle was called that wrote it.
        writer: String,
        /// The bundle that is served.
        bundle: PathBuf,
    },
    /// A tokenizer file cannot be read, or cannot code a text.
    #[error("{}", tokenizer_fault(path, reason))]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// A call that a decoder or a graph cannot take: which of its arguments, and why.
pub(crate) fn bad_call(place: &'static str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::BadCall { place, reason: reason.into() }
}

/// An input or output that a causal language model has otherwise, or not at all.
pub(crate) fn misfit(name: &str, reason: &str) -> RuntimeError {
    RuntimeError::NotADecoder { place: format!("`{name}`"), reason: reason.to_owned() }
}

/// Folds a foreign message into one line.
pub(crate) fn one_line(message: impl std::fmt::Display) -> String {
    let message = message.to_string();
    without_calls(&message).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What CUDA said, where ONNX Runtime tells it with the C++ calls that it came through.
fn without_calls(message: &str) -> &str {
    let of_cuda = message.find("CUDA failure ").and_then(|at| message[at..].split(" ; ").next());
    of_cuda.unwrap_or(message)
}

fn tokenizer_fault(path: &Path, reason: &str) -> String {
    let place = path.display();
    match path.exists() {
        true => format!("tokenizer {place}: {reason}"),
        false => format!(
            "{place}: {NOTHING} (hint: `AutoTokenizer.from_pretrained('MODEL').save_pretrained('MODEL')` of transformers writes one into MODEL, the directory that was converted; then convert it again)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line_without_the_calls_that_it_came_through() {
        let told = "/src/cuda_call.cc:154 std::conditional_t<THRW, void> onnxruntime::CudaCall(ERRTYPE) [with THRW = true]\n/src/cuda_call.cc:146 CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ; hostname=vm ; file=/src/cuda_graph.cc ; line=61";
        assert_eq!(
            one_line(told),
            "CUDA failure 901: operation failed due to a previous error during capture"
        );
        assert_eq!(one_line("node a:\n  it has no input"), "node a: it has no input");
    }
}
