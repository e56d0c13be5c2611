//! Runs a plan.

use crate::batch::plan::Plan;
use crate::report::outcome::Report;
use crate::report::progress::Progress;

/// How to run a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// Go on with the other jobs after one failed.
    pub keep_going: bool,
    /// Bytes that the jobs that run at once may take; most of what is free where not given.
    pub memory: Option<u64>,
    /// Threads that they may take; all cores where not given.
    pub threads: Option<usize>,
    /// Run what is up to date too.
    pub force: bool,
}

/// A plan cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("plans are not run by this build (hint: `dijiang batch FILE --dry-run` prints what to type)")]
    NotBuilt,
}

/// Runs the jobs of a plan.
pub fn run(_plan: &Plan, _options: &RunOptions, _progress: &mut dyn Progress) -> Result<Report, BatchError> {
    Err(BatchError::NotBuilt)
}
