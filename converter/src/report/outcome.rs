//! What came of a command or of a batch, in the one shape that all reports are written from.

use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A place in a file that a person wrote. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

/// Everything that was done, in its order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The subcommand: `batch`, `convert` or `verify`.
    pub command: String,
    /// The version of this program.
    pub version: String,
    pub seconds: f64,
    pub cases: Vec<Case>,
}

/// One thing that held or did not: a step of a job, a threshold, or a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// The job, or the bundle of a single command.
    pub suite: String,
    pub name: String,
    pub status: CaseStatus,
    pub seconds: f64,
    /// One line: why it failed or was skipped, or what it made.
    pub message: Option<String>,
    /// Where it was asked for.
    pub place: Option<Place>,
    /// What was measured, by name.
    pub numbers: BTreeMap<String, f64>,
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseStatus {
    Passed,
    /// It ran and is not good enough: exit 1.
    Failed,
    /// It could not run: exit 2.
    Error,
    /// It did not run, for the reason of the message.
    Skipped,
}

impl Report {
    /// 0 where nothing failed, 1 where something did, 2 where something could not run.
    pub fn exit_code(&self) -> u8 {
        let code = |case: &Case| match case.status {
            CaseStatus::Passed | CaseStatus::Skipped => 0,
            CaseStatus::Failed => 1,
            CaseStatus::Error => 2,
        };
        self.cases.iter().map(code).max().unwrap_or(0)
    }
}
