//! What is told of long work and of its results: progress, pictures, names made fit for a line. What commands print is
//! in [`crate::cli`].

pub(crate) mod message;
pub mod outcome;
pub(crate) mod plot;
pub mod progress;
