//! Passes that change the element type a graph computes in. What a weight is stored as is decided where it is read;
//! four bits are in [`crate::int4`].

pub mod mixed;
pub mod widen;
