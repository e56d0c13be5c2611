//! Weights of four bits: linear layers read theirs in blocks of [`BLOCK`] numbers with one scale and one zero point
//! each, through `com.microsoft::MatMulNBits`.
//!
//! *Not exact:* a number moves by half a step of its block at most, or where cutting off the ends of the block's range
//! makes its squared error smaller, by as much as it is cut off.

mod blocks;
mod expand;
mod quantize;

pub use blocks::BLOCK;
pub use expand::expand;
pub use quantize::quantize;
