//! Runs what `dijiang` writes: ONNX Runtime and tract behind one trait, and text generation on top.
//!
//! A [`Runtime`] loads a model file into a [`Session`], which maps named [`HostTensor`]s to [`HostTensor`]s.
//! A [`Decoder`] is a causal language model with its state; [`Serving`] chooses one for a bundle, and [`generate`]
//! continues texts with it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decode;
mod files;
mod generate;
mod ort;
mod session;
mod tract;

pub use dijiang_format::serving::{Device, Engine};

pub use decode::decoder::{Branching, Decoder, Scored};
pub use decode::greedy::greedy;
pub use decode::host::HostDecoder;
pub use decode::identity::ModelIdentity;
pub use decode::state::{DecoderState, History};
pub use files::output_file::{NewFile, write_file};
pub use files::temporary;
pub use generate::continuation::{GenerateOptions, Generated, generate};
pub use generate::pieces::{Pieces, TextError};
pub use generate::sample::Sampler;
pub use generate::serving::{BOUND_SEGMENT, Branches, Serving, ServingOptions};
pub use generate::text::{TextStream, Tokenizer};
pub use ort::device_memory::memory_in_use;
pub use ort::program::{DeviceTensor, Program};
pub use ort::runtime::OrtRuntime;
pub use session::error::RuntimeError;
pub use session::tensor::{HostTensor, TensorError};
pub use session::wiring::Link;
pub use session::{DimSpec, Factors, Io, LoadOptions, Runtime, Session};
pub use tract::runtime::TractRuntime;
