//! ONNX files: the messages, a graph written as one, and one read as a graph. Differences between
//! opsets, functions, branches, external data and protobuf end here.

mod attribute;
mod branches;
mod dims;
mod dtype;
pub mod export;
pub(crate) mod external;
mod forms;
mod functions;
pub mod import;
mod initializer;
mod legacy;
pub mod locations;
mod notes;
mod order;
pub mod proto;
mod reader;
mod unique;
mod wire;

/// The domain of the standard operators has two spellings.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

#[cfg(test)]
mod tests;
