//! The intermediate representation: ids, values, operators, types, patches, text, and the oracle.

pub mod cache_input;
pub mod emit;
pub mod eval;
pub mod graph;
pub mod ids;
pub mod infer;
pub mod op;
pub mod ops;
pub mod patch;
pub mod rebuild;
pub mod shape;
pub mod tensor;
pub mod text;
pub mod verify;
pub(crate) mod walk;
