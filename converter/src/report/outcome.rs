//! What came of a command or of a batch, in the one shape that all reports are written from.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A place in a file that a person wrote. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
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

/// What numbers are called that say how well a case came out. Others say what it took.
const RESULTS: [&str; 5] = ["accuracy", "limit", "measured", "perplexity", "standard_error"];

/// Whether a number is such a one: `perplexity of TEXT` is.
pub fn is_result(name: &str) -> bool {
    let metric = name.split_once(" of ").map_or(name, |(metric, _)| metric);
    RESULTS.contains(&metric)
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

    /// The cases of each suite, both in the order in which they came first.
    pub fn suites(&self) -> Vec<(&str, Vec<&Case>)> {
        let mut suites: Vec<(&str, Vec<&Case>)> = Vec::new();
        let mut places = BTreeMap::new();
        for case in &self.cases {
            let place = *places.entry(case.suite.as_str()).or_insert(suites.len());
            if place == suites.len() {
                suites.push((&case.suite, Vec::new()));
            }
            suites[place].1.push(case);
        }
        suites
    }
}

#[cfg(test)]
pub(crate) mod example {
    use super::*;

    fn case(suite: &str, name: &str, status: CaseStatus, message: &str) -> Case {
        Case {
            suite: suite.into(),
            name: name.into(),
            status,
            seconds: 1.25,
            message: (!message.is_empty()).then(|| message.into()),
            place: None,
            numbers: BTreeMap::new(),
        }
    }

    /// Every status, with and without a message, and characters that a format has a meaning for.
    pub(crate) fn report() -> Report {
        let at = Place { file: "odd, dir:1/jobs.yaml".into(), line: 3, column: 7 };
        let cases = vec![
            case("llama", "convert", CaseStatus::Passed, "2 of 2 attentions are linear"),
            Case {
                numbers: BTreeMap::from([("limit".into(), 1e-4), ("measured".into(), 0.25)]),
                place: Some(at.clone()),
                ..case(
                    "llama",
                    "tract: served = parallel",
                    CaseStatus::Failed,
                    "100 % off\nand <b>more</b> | so",
                )
            },
            case("opt", "convert", CaseStatus::Error, "\u{1b}[31mno \"file\" & 'so'"),
            Case {
                numbers: BTreeMap::from([("measured".into(), f64::NAN)]),
                ..case("llama", "drift", CaseStatus::Passed, "")
            },
            Case {
                place: Some(at),
                ..case("neox", "eval", CaseStatus::Skipped, "its baseline `opt` failed")
            },
        ];
        Report { command: "batch".into(), version: "1.2.3".into(), seconds: 6.5, cases }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_decides_the_exit_code() {
        let mut report = example::report();
        assert_eq!(report.exit_code(), 2);
        report.cases.retain(|case| case.status != CaseStatus::Error);
        assert_eq!(report.exit_code(), 1);
        report.cases.retain(|case| case.status != CaseStatus::Failed);
        assert_eq!(report.exit_code(), 0);
    }

    #[test]
    fn cases_of_one_suite_come_together() {
        let report = example::report();
        let names: Vec<_> = report.suites().into_iter().map(|(name, cases)| (name, cases.len())).collect();
        assert_eq!(names, [("llama", 3), ("opt", 1), ("neox", 1)]);
    }
}
