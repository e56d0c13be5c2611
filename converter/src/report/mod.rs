//! Reports: progress of long work, pictures of runs, names that are cut to fit into one line, and results in the formats
//! that other programs read. What commands print is in [`crate::cli`].

pub mod chart;
pub mod github;
pub mod json;
pub mod junit;
pub(crate) mod message;
pub mod outcome;
pub mod progress;
