//! Runs what `dijiang` writes: ONNX Runtime and tract behind one trait, and text generation on top.
//!
//! A [`Runtime`] loads a model file into a [`Session`], which maps named [`HostTensor`]s to [`HostTensor`]s.
//! A [`Decoder`] drives a session as a causal language model, and [`generate`] continues a text with it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bound;
mod cuda_libraries;
mod decoder;
mod decoder_layout;
mod device_memory;
mod discover;
mod error;
mod generate;
mod growing;
mod ort_library;
mod ort_runtime;
mod output_file;
mod program;
mod sample;
mod served_bundle;
mod serving;
mod session;
mod state_file;
pub mod temporary;
mod tensor;
mod text;
mod tract_runtime;
mod tract_types;
mod unreleased_opsets;
mod weight_file;
mod wiring;

pub use bound::PREFILL_CHUNK;
pub use decoder::{Decoder, DecoderState, History};
pub use device_memory::memory_in_use;
pub use error::RuntimeError;
pub use generate::{GenerateOptions, Generated, generate};
pub use growing::{GrowingDecoder, GrowingOptions, NEXT};
pub use ort_runtime::OrtRuntime;
pub use output_file::write_file;
pub use program::{DeviceTensor, Program};
pub use sample::{Sampler, greedy};
pub use serving::{BOUND_SEGMENT, Engine, Serving, ServingOptions};
pub use session::{Device, DimSpec, Io, LoadOptions, Runtime, Session};
pub use tensor::{Dtype, HostTensor, TensorError};
pub use text::{TextStream, Tokenizer};
pub use tract_runtime::TractRuntime;
pub use wiring::Link;
