//! placeholder
pub mod bundle;
pub mod onnx;
pub mod checkpoint;
