//! What a bundle is, by its manifest and its bytes: what it was made from, whether it still is what was written, and
//! how two of them differ.

pub mod diff;
pub mod files;
pub mod graphs;
pub mod info;
pub mod numerics;
pub mod opened;
pub mod tensors;
