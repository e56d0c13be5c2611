//! The proof as cases of a report.

use super::table::{Check, Measure, Status, Verification};
use crate::report::message::one_line;
use crate::report::outcome::{Case, CaseStatus};
use std::collections::BTreeMap;

impl Verification {
    /// A case for each row. `suite` is the bundle.
    pub fn cases(&self, suite: &str) -> Vec<Case> {
        self.checks.iter().map(|check| case(suite, check)).collect()
    }
}

fn case(suite: &str, check: &Check) -> Case {
    let numbers =
        [("measured", Some(check.measured).filter(|_| !check.is_skipped())), ("limit", check.limit)];
    let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name.to_owned(), number?)));
    Case {
        suite: suite.to_owned(),
        name: one_line(&check.name),
        status: match check.status {
            Status::Held | Status::Reported => CaseStatus::Passed,
            Status::Failed => CaseStatus::Failed,
            Status::Skipped => CaseStatus::Skipped,
        },
        seconds: check.seconds,
        message: Some(one_line(&message(check))),
        place: None,
        numbers: numbers.collect::<BTreeMap<_, _>>(),
    }
}

/// The number beside its limit, and what there is to say besides.
fn message(check: &Check) -> String {
    let reason = check.reason.as_deref().unwrap_or_default();
    let bound = |limit: f64| match check.measure {
        Some(Measure::Count) => format!("at most {limit:.0}"),
        _ => format!("within {limit:.0e}"),
    };
    let text = match (check.status, check.limit) {
        (Status::Skipped, _) => return reason.to_owned(),
        (Status::Failed, Some(limit)) => format!("{} is not {}", check.number(), bound(limit)),
        (_, Some(limit)) => format!("{} is {}", check.number(), bound(limit)),
        (_, None) => format!("{}, and nothing is required of it", check.number()),
    };
    if reason.is_empty() { text } else { format!("{text}: {reason}") }
}
