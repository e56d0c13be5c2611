//! ONNX Runtime: the library found and loaded, sessions on it, and graphs over memory that stays on a device. Tokens
//! and texts are the concern of others.

pub(crate) mod cuda_libraries;
pub(crate) mod device_memory;
pub(crate) mod discover;
pub(crate) mod library;
pub(crate) mod load_environment;
pub(crate) mod program;
pub(crate) mod runtime;
