//! Bytes to graphs and back: checkpoints, ONNX files and bundles, the conversion and its proof, and
//! the command line.

pub mod adapt;
pub mod batch;
pub mod bench;
pub mod bundle;
pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod convert;
pub mod eval;
pub mod hub;
pub mod onnx;
pub mod page;
pub mod provenance;
pub mod recipes;
pub mod report;
pub mod serving;
pub mod synth;
pub mod torch;
pub mod train;
pub mod verify;
