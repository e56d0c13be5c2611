//! Bytes to graphs and back: checkpoints, ONNX files and bundles, the conversion and its proof, and
//! the command line.

pub mod bench;
pub mod bundle;
pub mod checkpoint;
pub mod cli;
pub mod compile;
pub mod convert;
pub mod estimate;
mod finite;
pub mod genai;
pub mod onnx;
mod plot;
pub mod progress;
pub mod quantization;
pub mod recipes;
pub mod requantize;
pub mod source;
pub mod stop_after;
pub mod stored_file;
pub mod synth;
pub mod target;
pub mod torch;
pub mod train;
pub mod verify;
