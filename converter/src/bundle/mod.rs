//! The bundle: a directory with one weight file and graphs that point into it.

pub mod atomic;
pub mod digests;
pub(crate) mod finite;
pub mod link;
pub mod lock;
pub mod replace;
pub mod room;
pub mod weights;
