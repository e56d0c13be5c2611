//! The proof as a table: a row for each comparison, with what was compared with what, how, and what came of it.

use super::measure::relative_error;
use dijiang_format::manifest;
use serde::Serialize;
use serde::ser::{SerializeStruct as _, Serializer};

/// How a row measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The norm of the difference of all logits over the norm of the reference's.
    RelativeError,
    /// The same for each token, and of these the median.
    MedianRelativeError,
    /// How many there are.
    Count,
    /// KL(softmax ‖ linear) of next tokens, in nats, mean over tokens.
    Kl,
    /// The share of tokens whose likeliest next token is the same.
    Agreement,
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The number is within its limit.
    Held,
    /// It is not.
    Failed,
    /// There is a number, and nothing is required of it.
    Reported,
    /// There is no number.
    Skipped,
}

/// Two things to compare.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    pub(super) name: String,
    pub(super) subject: String,
    pub(super) reference: String,
    pub(super) measure: Measure,
}

impl Comparison {
    /// Of logits.
    pub(super) fn new(
        name: impl Into<String>,
        subject: impl Into<String>,
        reference: impl Into<String>,
    ) -> Self {
        let (name, subject, reference) = (name.into(), subject.into(), reference.into());
        Self { name, subject, reference, measure: Measure::RelativeError }
    }

    pub(super) fn by(self, measure: Measure) -> Self {
        Self { measure, ..self }
    }

    /// A row that holds where the number is within the limit. NaN is not within anything.
    pub(super) fn within(self, measured: f64, limit: f64) -> Check {
        let ok = measured <= limit;
        let status = if ok { Status::Held } else { Status::Failed };
        Check { limit: Some(limit), ok, status, ..self.reported(measured) }
    }

    /// The same, of two sets of logits.
    pub(super) fn logits(self, limit: f64, found: &[f32], reference: &[f32]) -> Check {
        self.within(relative_error(found, reference), limit)
    }

    /// A row of which nothing is required.
    pub(super) fn reported(self, measured: f64) -> Check {
        Check {
            name: self.name,
            subject: self.subject,
            reference: Some(self.reference),
            measure: Some(self.measure),
            measured,
            limit: None,
            ok: true,
            status: Status::Reported,
            reason: None,
            recorded: None,
        }
    }

    /// A row that could not be measured.
    pub(super) fn skipped(self, reason: impl Into<String>) -> Check {
        let unmeasured = self.reported(f64::NAN);
        Check { status: Status::Skipped, reason: Some(reason.into()), ..unmeasured }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub name: String,
    /// What was measured: a graph, where it ran and how it was fed, or a file.
    pub subject: String,
    /// What it was compared with. Absent where several comparisons were left out together.
    pub reference: Option<String>,
    pub measure: Option<Measure>,
    /// NaN where it was skipped.
    pub measured: f64,
    /// Absent where nothing is required.
    pub limit: Option<f64>,
    /// False where the bundle fails by this row.
    pub ok: bool,
    pub status: Status,
    /// Why it was skipped, has no limit, or failed, where there is more to say than the number.
    pub reason: Option<String>,
    /// The reason without what differs between machines, for the manifest.
    recorded: Option<String>,
}

impl Check {
    /// Several comparisons that could not be made.
    pub(super) fn skipped(what: impl Into<String>, reason: impl Into<String>) -> Self {
        let what = what.into();
        let row = Comparison::new(what.clone(), what, "").skipped(reason);
        Self { reference: None, measure: None, ..row }
    }

    /// The same row with what there is to say besides.
    pub(super) fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// The same row with another reason in the manifest.
    pub(super) fn recorded_as(self, reason: impl Into<String>) -> Self {
        Self { recorded: Some(reason.into()), ..self }
    }

    pub fn is_skipped(&self) -> bool {
        self.status == Status::Skipped
    }

    /// Of a row that was skipped.
    fn skipped_line(&self) -> String {
        format!("{}: {}", self.name, self.reason.as_deref().unwrap_or_default())
    }

    fn for_manifest(&self) -> Option<manifest::Check> {
        let made = !self.is_skipped();
        let reason = self.recorded.as_ref().or(self.reason.as_ref());
        let skipped = (!made).then(|| reason.cloned().unwrap_or_default());
        let limit = self.limit.filter(|_| made);
        let is_kept = limit.is_some() || !made;
        is_kept.then(|| manifest::Check {
            name: self.name.clone(),
            limit,
            ok: made.then_some(self.ok),
            skipped,
        })
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("Check", 9)?;
        row.serialize_field("name", &self.name)?;
        row.serialize_field("subject", &self.subject)?;
        row.serialize_field("reference", &self.reference)?;
        row.serialize_field("measure", &self.measure)?;
        row.serialize_field("measured", &self.measured)?;
        row.serialize_field("limit", &self.limit)?;
        // What was not looked at is neither.
        row.serialize_field("ok", &(!self.is_skipped()).then_some(self.ok))?;
        row.serialize_field("status", &self.status)?;
        row.serialize_field("reason", &self.reason)?;
        row.end()
    }
}

/// The table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verification {
    pub checks: Vec<Check>,
    /// Whether no row failed.
    pub ok: bool,
}

impl Verification {
    /// One line for each row that was skipped: what was left out, and why.
    pub fn skipped(&self) -> Vec<String> {
        self.checks.iter().filter(|c| c.is_skipped()).map(Check::skipped_line).collect()
    }

    /// The rows that the manifest keeps: those with a limit, and those that were skipped.
    pub fn for_manifest(&self) -> Vec<manifest::Check> {
        self.checks.iter().filter_map(Check::for_manifest).collect()
    }

    /// How it ended, in one line.
    pub fn summary(&self) -> String {
        let names = |status: Status| {
            let rows = self.checks.iter().filter(|c| c.status == status);
            rows.map(|c| c.name.as_str()).collect::<Vec<_>>()
        };
        let [held, failed, skipped] = [Status::Held, Status::Failed, Status::Skipped].map(names);
        let all = held.len() + failed.len();
        let text = match failed.as_slice() {
            [] => format!("all {all} checks held"),
            [one] => format!("1 of {all} checks failed: {one}"),
            several => format!("{} of {all} checks failed: {}", several.len(), several.join("; ")),
        };
        match skipped.len() {
            0 => text,
            left_out => format!("{text}, {left_out} skipped: {}", skipped.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Verification {
        let made = |name: &str| Comparison::new(name, "model.onnx in tract", "parallel.onnx in tract");
        let checks = vec![
            made("a = b").within(1e-5, 1e-4),
            made("drift").by(Measure::Kl).reported(0.5),
            Check::skipped("everything in ONNX Runtime", "it is not in /opt").recorded_as("it was not found"),
        ];
        Verification { checks, ok: true }
    }

    #[test]
    fn the_summary_counts_what_was_left_out() {
        let mut table = rows();
        assert_eq!(table.summary(), "all 1 checks held, 1 skipped: everything in ONNX Runtime");
        table.checks.pop();
        assert_eq!(table.summary(), "all 1 checks held");
        table.checks.push(Comparison::new("c = d", "c", "d").within(f64::NAN, 1.0));
        assert_eq!(table.summary(), "1 of 2 checks failed: c = d");
    }

    #[test]
    fn a_row_says_what_was_compared_and_what_was_not() {
        let rows = rows();
        let json = |value: serde_json::Result<String>| value.expect("it is written");
        insta::assert_snapshot!(json(serde_json::to_string_pretty(&rows.checks)));
        insta::assert_snapshot!(json(serde_json::to_string_pretty(&rows.for_manifest())));
        assert_eq!(rows.skipped(), ["everything in ONNX Runtime: it is not in /opt"]);
    }
}
