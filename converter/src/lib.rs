//! placeholder
pub mod bundle;
pub mod onnx;
