//! Weights of four bits: linear layers read theirs in blocks of [`BLOCK`] numbers with one scale and one zero point
//! each, through `com.microsoft::MatMulNBits`.
//!
//! *Not exact:* a number moves by at most half a step of its block. Where a narrower range makes the squared error of the
//! block smaller, numbers outside it move to its ends.

mod blocks;
mod expand;
mod quantize;

pub use blocks::BLOCK;
pub use expand::expand;
pub use quantize::quantize;
