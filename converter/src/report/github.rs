//! A report for GitHub Actions: a workflow command for each thing that went wrong, which the site shows beside the line
//! it is about, and a job summary in Markdown.
//!
//! <https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions>

use crate::report::message::{number, one_line};
use crate::report::outcome::{Case, CaseStatus, Place, Report, is_result};
use std::fmt::Write as _;

/// Bytes of the summaries of one step, at most: GitHub refuses more.
pub const MOST_SUMMARY: usize = 1024 * 1024;

/// One line for each case that failed or could not run.
pub fn annotations(report: &Report) -> String {
    let wrong = |case: &&Case| matches!(case.status, CaseStatus::Failed | CaseStatus::Error);
    report.cases.iter().filter(wrong).map(annotation).collect()
}

fn annotation(case: &Case) -> String {
    let message = case.message.as_deref().unwrap_or_else(|| word(case.status));
    let text = data(&format!("{}{message}", unplaced(case)));
    let place = case.place.as_ref().map_or(String::new(), |place| {
        let file = property(&place.file.display().to_string());
        format!(" file={file},line={},col={}", place.line, place.column)
    });
    format!("::error{place}::{text}\n")
}

/// The suite and the name of a case, but for what its place says already.
fn unplaced(case: &Case) -> String {
    let place = case.place.as_ref().map(Place::to_string).unwrap_or_default();
    let parts = [&case.suite, &case.name].into_iter().filter(|part| !place.starts_with(*part));
    parts.fold(String::new(), |told, part| told + part + ": ")
}

/// What follows the second `::` of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// What follows a `=` of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// A heading and a table, with what went wrong first, in no more bytes than there are.
pub fn summary(report: &Report, most_bytes: usize) -> String {
    let mut text = heading(report);
    text.push_str("| | of | case | seconds | numbers | |\n|---|---|---|---|---|---|\n");
    let mut cases: Vec<&Case> = report.cases.iter().collect();
    cases.sort_by_key(|case| urgency(case.status));
    for (shown, case) in cases.iter().enumerate() {
        let row = row(case);
        let rest = format!("\n{} more cases are in the report's other formats.\n", cases.len() - shown);
        if text.len() + row.len() + rest.len() > most_bytes {
            text.push_str(&rest);
            break;
        }
        text.push_str(&row);
    }
    if text.len() + 1 > most_bytes { String::new() } else { text + "\n" }
}

fn heading(report: &Report) -> String {
    let told = |(status, word): (CaseStatus, &str)| {
        let count = report.cases.iter().filter(|case| case.status == status).count();
        (count > 0).then(|| format!("{count} {word}"))
    };
    let statuses = [CaseStatus::Error, CaseStatus::Failed, CaseStatus::Skipped, CaseStatus::Passed];
    let counts: Vec<String> =
        statuses.into_iter().map(|status| (status, word(status))).filter_map(told).collect();
    let counts = if counts.is_empty() { "nothing was done".to_owned() } else { counts.join(", ") };
    format!(
        "## dijiang {}: {counts}\n\ndijiang {}, {:.1} s\n\n",
        report.command, report.version, report.seconds
    )
}

fn urgency(status: CaseStatus) -> u8 {
    match status {
        CaseStatus::Error => 0,
        CaseStatus::Failed => 1,
        CaseStatus::Skipped => 2,
        CaseStatus::Passed => 3,
    }
}

fn word(status: CaseStatus) -> &'static str {
    match status {
        CaseStatus::Error => "could not run",
        CaseStatus::Failed => "failed",
        CaseStatus::Skipped => "skipped",
        CaseStatus::Passed => "passed",
    }
}

fn row(case: &Case) -> String {
    let status = match case.status {
        CaseStatus::Error | CaseStatus::Failed => format!("**{}**", word(case.status)),
        CaseStatus::Skipped | CaseStatus::Passed => word(case.status).to_owned(),
    };
    let mut numbers = String::new();
    for (name, value) in case.numbers.iter().filter(|(name, _)| is_result(name)) {
        let space = if numbers.is_empty() { "" } else { ", " };
        // Writing into a string does not fail.
        let _ = write!(numbers, "{space}{name} {}", number(*value));
    }
    let message = case.message.as_deref().unwrap_or_default();
    format!(
        "| {status} | {} | {} | {:.1} | {} | {} |\n",
        cell(&case.suite),
        cell(&case.name),
        case.seconds,
        cell(&numbers),
        cell(message)
    )
}

/// Text as the cell of a table shows it: no character of it is Markdown or HTML.
fn cell(text: &str) -> String {
    let mut escaped = String::new();
    for c in one_line(text).chars() {
        if "\\`*_[]<>|~&#$@!".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::outcome::example;

    #[test]
    fn annotations_are_of_what_went_wrong_alone() {
        insta::assert_snapshot!(annotations(&example::report()));
    }

    #[test]
    fn the_summary_begins_with_what_went_wrong() {
        insta::assert_snapshot!(summary(&example::report(), MOST_SUMMARY));
    }

    #[test]
    fn a_summary_is_no_longer_than_there_is_room_for() {
        let case = Case { message: Some("x".repeat(300)), ..example::report().cases.remove(0) };
        let report = Report { cases: vec![case; 10_000], ..example::report() };
        let whole = summary(&report, usize::MAX);
        assert!(whole.len() > MOST_SUMMARY && !whole.contains("more cases"), "{}", whole.len());
        let cut = summary(&report, MOST_SUMMARY);
        assert!((MOST_SUMMARY - 1000..=MOST_SUMMARY).contains(&cut.len()), "{}", cut.len());
        let shown = cut.matches("| passed |").count();
        assert!(
            cut.ends_with(&format!("\n{} more cases are in the report's other formats.\n\n", 10_000 - shown))
        );
        assert_eq!(summary(&report, 10), "");
    }

    #[test]
    fn what_has_a_meaning_in_a_command_is_escaped() {
        assert_eq!(data("100 %: a,b\r\n::error::"), "100 %25: a,b%0D%0A::error::");
        assert_eq!(property("a:b,c%"), "a%3Ab%2Cc%25");
    }

    #[test]
    fn an_annotation_says_its_place_once() {
        let place = Place { file: "jobs.yaml".into(), line: 7, column: 5 };
        let case = |suite: &str, name: &str| Case {
            suite: suite.into(),
            name: name.into(),
            place: Some(place.clone()),
            message: Some("no".into()),
            ..example::report().cases.remove(1)
        };
        let told = |suite, name| annotation(&case(suite, name));
        assert_eq!(told("jobs.yaml", "jobs.yaml:7:5"), "::error file=jobs.yaml,line=7,col=5::no\n");
        assert_eq!(
            told("other.yaml", "jobs.yaml:7:5"),
            "::error file=jobs.yaml,line=7,col=5::other.yaml: no\n"
        );
        assert_eq!(told("a", "convert"), "::error file=jobs.yaml,line=7,col=5::a: convert: no\n");
    }

    #[test]
    fn the_numbers_of_a_summary_are_what_was_measured() {
        let numbers = [("peak_bytes", 9e9), ("started", 0.5), ("perplexity of a.txt", 8.25), ("limit", 9.0)];
        let numbers = numbers.map(|(name, number)| (name.to_owned(), number)).into();
        let case = Case { numbers, ..example::report().cases.remove(0) };
        assert!(row(&case).contains(" | limit 9, perplexity of a.txt 8.2500 | "), "{}", row(&case));
    }
}
