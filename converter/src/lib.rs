//! placeholder
pub mod bundle;
pub mod checkpoint;
pub mod onnx;
