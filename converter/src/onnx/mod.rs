//! ONNX files: the messages, a graph written as one, and one read as a graph. Differences between
//! opsets, external data and protobuf end here.

mod attribute;
mod dtype;
pub mod export;
mod forms;
pub mod import;
mod initializer;
pub mod proto;

#[cfg(test)]
mod tests;
