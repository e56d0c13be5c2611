//! The bundle: a directory with one weight file and graphs that point into it.

pub mod weights;
