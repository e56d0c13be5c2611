//! A conversion as cases of a report.

use super::Converted;
use crate::report::outcome::{Case, CaseStatus};
use dijiang_format::words::counted;
use std::collections::BTreeMap;

impl Converted {
    /// The conversion itself, and each row of its proof. `suite` is the bundle, `seconds` what all of it took.
    pub fn cases(&self, suite: &str, seconds: f64) -> Vec<Case> {
        let mut cases = self.verification.as_ref().map_or(Vec::new(), |found| found.cases(suite));
        let proof: f64 = cases.iter().map(|case| case.seconds).sum();
        cases.insert(0, self.case(suite, (seconds - proof).max(0.0)));
        cases
    }

    fn case(&self, suite: &str, seconds: f64) -> Case {
        let linear = self.sites.iter().filter(|site| site.is_linear()).count();
        let windows = self.sites.iter().filter(|site| site.keeps_window()).count();
        let all = self.sites.len() + self.misses.len();
        let numbers = [
            ("attentions", all as f64),
            ("linear_attentions", linear as f64),
            ("window_attentions", windows as f64),
            ("bytes_written", self.bytes_written as f64),
            ("estimated_disk_bytes", self.estimate.disk as f64),
            ("estimated_memory_bytes", self.estimate.memory as f64),
        ];
        let (status, message) = match self.written {
            true => (CaseStatus::Passed, format!("{linear} of {} became linear", counted(all, "attention"))),
            false => (CaseStatus::Failed, "a check failed, and so nothing was written".to_owned()),
        };
        Case {
            suite: suite.to_owned(),
            name: "convert".to_owned(),
            status,
            seconds,
            message: Some(message),
            place: None,
            numbers: numbers
                .map(|(name, number)| (name.to_owned(), number))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
        }
    }
}
