//! What came of each job, for people and for `batch --json`.

use super::is_good;
use super::job::End;
use super::measured::Measured;
use crate::batch::plan::{Job, Quantity};
use crate::report::outcome::{Case, CaseStatus};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Some of its steps ran.
    Built,
    /// Nothing was left to do.
    Fresh,
    /// A step or a limit did not hold, or could not run.
    Failed,
    /// It was not begun.
    Skipped,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobOutcome {
    pub name: String,
    pub state: JobState,
    /// One line.
    pub why: String,
    pub seconds: f64,
    pub bundle: PathBuf,
    /// As `convert` and `verify` print them.
    pub checks: Vec<Value>,
    pub thresholds: Vec<Limit>,
    /// What its steps measured of its bundle, in this run or before.
    pub measured: Vec<Measured>,
}

/// What came of a limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    pub name: String,
    /// Absent where the job did not get that far.
    pub limit: Option<f64>,
    pub measured: Option<f64>,
    pub standard_error: Option<f64>,
    /// Absent where nothing was measured because the job did not get that far.
    pub ok: Option<bool>,
    /// One line.
    pub reason: String,
}

impl JobOutcome {
    pub(super) fn of(job: &Job, end: &End) -> Self {
        let bad = end.cases.iter().find(|case| !is_good(case.status));
        let (state, why) = match bad {
            Some(case) => (JobState::Failed, format!("{}: {}", case.name, said(case))),
            None => (end.state, end.why.clone()),
        };
        Self {
            name: job.name.clone(),
            state,
            why,
            seconds: end.cases.iter().map(|case| case.seconds).sum(),
            bundle: job.bundle.clone(),
            checks: end.checks.clone(),
            thresholds: end.cases.iter().filter_map(Limit::of).collect(),
            measured: Measured::of_steps(&end.steps),
        }
    }
}

impl Limit {
    /// None of a case that is a step.
    fn of(case: &Case) -> Option<Self> {
        Quantity::named(&case.name)?;
        let number = |name: &str| case.numbers.get(name).copied();
        Some(Self {
            name: case.name.clone(),
            limit: number("limit"),
            measured: number("measured"),
            standard_error: number("standard_error"),
            ok: (case.status != CaseStatus::Skipped).then(|| is_good(case.status)),
            reason: said(case).to_owned(),
        })
    }
}

fn said(case: &Case) -> &str {
    case.message.as_deref().unwrap_or("it failed")
}
