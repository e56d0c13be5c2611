//! Passes that change the element type a graph computes in. The element type that weights are stored in is
//! chosen when the source is read; weights of four bits are in [`crate::int4`].

pub mod bytes;
pub mod mixed;
pub mod widen;
