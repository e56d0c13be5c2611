//! A report as one JSON object on one line: `docs/schemas/cases.json` describes it.

use crate::report::outcome::Report;

/// The object, with the line's end. A number that is not finite is null.
pub fn text(report: &Report) -> serde_json::Result<String> {
    Ok(serde_json::to_string(report)? + "\n")
}
