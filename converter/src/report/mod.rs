//! Reports: progress of long work, pictures of runs, and names that are cut to fit into one line. What commands print
//! is in [`crate::cli`].

pub(crate) mod message;
pub mod outcome;
pub(crate) mod plot;
pub mod progress;
