//! Runs what `dijiang` writes: ONNX Runtime and tract behind one trait, and text generation on top.
//!
//! A [`Runtime`] loads a model file into a [`Session`], which maps named [`HostTensor`]s to [`HostTensor`]s.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cuda_libraries;
mod decoder;
mod decoder_layout;
mod discover;
mod error;
mod ort_library;
mod ort_runtime;
mod session;
mod tensor;
mod tract_runtime;
mod tract_types;

pub use decoder::{Decoder, DecoderState};
pub use error::RuntimeError;
pub use ort_runtime::OrtRuntime;
pub use session::{Device, DimSpec, Io, LoadOptions, Runtime, Session};
pub use tensor::{Dtype, HostTensor, TensorError};
pub use tract_runtime::TractRuntime;
