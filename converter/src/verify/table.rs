//! The proof as a table: a row for each comparison, with what was compared with what, how, and what came of it.

use super::measure::relative_error;
use dijiang_format::manifest;
use dijiang_format::words::counted;
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
    /// The exponential of the mean loss of the next tokens.
    Perplexity,
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
            seconds: 0.0,
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
    /// Since the row before: what several rows need counts for the first of them.
    pub seconds: f64,
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

    /// The same row with the time that it took.
    pub(super) fn taking(self, seconds: f64) -> Self {
        Self { seconds, ..self }
    }

    pub fn is_skipped(&self) -> bool {
        self.status == Status::Skipped
    }

    /// The name, and after that of a count what was counted.
    pub fn label(&self) -> String {
        match self.reason.as_ref().filter(|_| self.measure == Some(Measure::Count)) {
            Some(counted) => format!("{}: {counted}", self.name),
            None => self.name.clone(),
        }
    }

    /// What was measured: a count as the whole number that it is.
    pub fn number(&self) -> String {
        match self.measure {
            Some(Measure::Count) => format!("{:.0}", self.measured),
            _ => format!("{:.2e}", self.measured),
        }
    }

    /// Whether the number is within its limit, or why nothing is required of it.
    pub fn verdict(&self) -> String {
        let reason = self.reason.as_ref().filter(|_| self.measure != Some(Measure::Count));
        let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
        let limit = |limit: f64| match self.measure {
            Some(Measure::Count) => format!("at most {limit:.0}"),
            _ => format!("within {limit:.0e}"),
        };
        match (self.limit, self.ok) {
            (None, _) => format!("reported{reason}"),
            (Some(most), true) => format!("ok       {}{reason}", limit(most)),
            (Some(most), false) => format!("FAILED   not {}{reason}", limit(most)),
        }
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

/// What is counted are files, weights and states that are not as they were written.
const DAMAGED: &str = "(hint: the bundle is not as it was written; convert the model again with --force)";

/// The table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verification {
    pub checks: Vec<Check>,
    /// Whether no row failed.
    pub ok: bool,
    /// What ran the graphs.
    pub runtimes: Vec<manifest::RuntimeVersion>,
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

    /// How many rows were skipped, and which for what reason. `None` where none was.
    pub fn skipped_by_reason(&self) -> Option<String> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for check in self.checks.iter().filter(|c| c.is_skipped()) {
            let reason = check.reason.as_deref().unwrap_or_default();
            match groups.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, names)) => names.push(&check.name),
                None => groups.push((reason, vec![&check.name])),
            }
        }
        let count: usize = groups.iter().map(|(_, names)| names.len()).sum();
        let told = |(reason, names): &(&str, Vec<&str>)| format!("{} ({reason})", names.join(", "));
        let groups: Vec<String> = groups.iter().map(told).collect();
        (count > 0).then(|| format!("{} skipped: {}", counted(count, "check"), groups.join("; ")))
    }

    /// How it ended, in one line.
    pub fn summary(&self) -> String {
        let of = |status: Status| self.checks.iter().filter(move |c| c.status == status);
        let failed: Vec<String> = of(Status::Failed).map(Check::label).collect();
        let [held, skipped] = [Status::Held, Status::Skipped].map(|status| of(status).count());
        let number = held + failed.len();
        let all = counted(number, "check");
        let text = match failed.as_slice() {
            [] if number == 1 => format!("{all} held"),
            [] => format!("all {all} held"),
            failed => format!("{} of {all} failed ({})", failed.len(), failed.join("; ")),
        };
        let text = match skipped {
            0 => text,
            skipped => format!("{text}, {skipped} skipped"),
        };
        match of(Status::Failed).any(|check| check.measure == Some(Measure::Count)) {
            true => format!("{text} {DAMAGED}"),
            false => text,
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
        Verification { checks, ok: true, runtimes: Vec::new() }
    }

    #[test]
    fn the_summary_counts_what_was_left_out() {
        let mut table = rows();
        assert_eq!(table.summary(), "1 check held, 1 skipped");
        table.checks.pop();
        assert_eq!(table.summary(), "1 check held");
        table.checks.push(Comparison::new("c = d", "c", "d").within(f64::NAN, 1.0));
        assert_eq!(table.summary(), "1 of 2 checks failed (c = d)");
        table.checks.push(Check::skipped("e = f", "there is no f"));
        let missing = Comparison::new("missing files", "the bundle", "dijiang.json").by(Measure::Count);
        table.checks.push(missing.within(1.0, 0.0).because("decode.onnx"));
        assert_eq!(
            table.summary(),
            "2 of 3 checks failed (c = d; missing files: decode.onnx), 1 skipped (hint: the bundle is not as it was written; convert the model again with --force)"
        );
    }

    #[test]
    fn skipped_rows_are_counted_and_grouped_by_reason() {
        let mut table = rows();
        table.checks.push(Check::skipped("tract: a = b", "it has no LinearAttention"));
        table.checks.push(Check::skipped("tract: c = d", "it has no LinearAttention"));
        assert_eq!(
            table.skipped_by_reason().as_deref(),
            Some(
                "3 checks skipped: everything in ONNX Runtime (it is not in /opt); tract: a = b, tract: c = d (it has no LinearAttention)"
            )
        );
        table.checks.retain(|check| !check.is_skipped());
        assert_eq!(table.skipped_by_reason(), None);
    }

    #[test]
    fn counts_are_whole_numbers_and_say_what_was_counted() {
        let row = || Comparison::new("missing files", "the bundle", "dijiang.json").by(Measure::Count);
        let (held, failed) = (row().within(0.0, 0.0), row().within(1.0, 0.0).because("decode.onnx"));
        let told = |row: &Check| [row.label(), row.number(), row.verdict()];
        assert_eq!(told(&held), ["missing files", "0", "ok       at most 0"]);
        assert_eq!(told(&failed), ["missing files: decode.onnx", "1", "FAILED   not at most 0"]);
        let norm = Comparison::new("a = b", "a", "b").within(0.5, 1e-4);
        assert_eq!(told(&norm), ["a = b", "5.00e-1", "FAILED   not within 1e-4"]);
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
