//! The contract: what the compiler writes and a runtime reads, stated once. Element types and numbers as bytes, the
//! files of a bundle, its manifest, the names of inputs, outputs and states, the grammar of joined weights, the widths
//! of padded states, where rings of keys and values lie, which graph serves where, what lies at a path, and regular files.
//!
//! Nothing here knows a graph or a session: the compiler (`dijiang-passes`) and the runtime (`dijiang-runtime`) use
//! this crate, and neither uses the other.

pub mod digest;
pub mod dtype;
pub mod elements;
pub mod files;
pub mod joined;
pub mod manifest;
pub mod names;
pub mod place;
pub mod quantization;
pub mod recipe;
pub mod regular;
pub mod ring;
pub mod seal;
pub mod serving;
pub mod target;
pub mod weight_header;
pub mod widths;
pub mod words;
