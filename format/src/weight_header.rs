//! The head of a safetensors file: a little-endian u64, the header of so many bytes, then the elements.

/// Bytes of the header's length, which come before the header.
pub const LENGTH_BYTES: usize = 8;

/// Longest header that is read, in bytes, as the `safetensors` crate has it.
pub const MOST_HEADER: u64 = 100_000_000;
