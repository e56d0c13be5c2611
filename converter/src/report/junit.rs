//! A report as JUnit XML, which most systems of continuous integration read.
//!
//! The elements and attributes are those of Jenkins' `junit-10.xsd`, in which a test case has no properties: the numbers
//! of a case are properties of its suite, `CASE: NUMBER`.

use crate::report::outcome::{Case, CaseStatus, Place, Report};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use std::io;

/// The document, with a line's end.
pub fn text(report: &Report) -> io::Result<String> {
    let mut out = Writer::new_with_indent(Vec::new(), b' ', 2);
    out.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let counts = Counts::of(&report.cases.iter());
    let name = format!("dijiang {} {}", report.command, report.version);
    let attributes =
        [("name", name), ("time", seconds(report.seconds))].into_iter().chain(counts.attributes());
    open(&mut out, "testsuites", &attributes.collect(), |out| {
        report.suites().iter().try_for_each(|(name, cases)| suite(out, name, cases))
    })?;
    let mut bytes = out.into_inner();
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(io::Error::other)
}

type Out = Writer<Vec<u8>>;
type Attributes = Vec<(&'static str, String)>;

/// How many cases there are, and how they ended.
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
}

impl Counts {
    fn of<'a>(cases: &(impl Iterator<Item = &'a Case> + Clone)) -> Self {
        let ended = |status| cases.clone().filter(|case| case.status == status).count();
        Self {
            tests: cases.clone().count(),
            failures: ended(CaseStatus::Failed),
            errors: ended(CaseStatus::Error),
            skipped: ended(CaseStatus::Skipped),
        }
    }

    /// Those that a suite and the whole have.
    fn attributes(&self) -> [(&'static str, String); 3] {
        [
            ("tests", self.tests.to_string()),
            ("failures", self.failures.to_string()),
            ("errors", self.errors.to_string()),
        ]
    }
}

fn suite(out: &mut Out, name: &str, cases: &[&Case]) -> io::Result<()> {
    let counts = Counts::of(&cases.iter().copied());
    let mut attributes = vec![
        ("name", name.to_owned()),
        ("time", seconds(cases.iter().map(|case| case.seconds).sum())),
        ("skipped", counts.skipped.to_string()),
    ];
    attributes.extend(counts.attributes());
    open(out, "testsuite", &attributes, |out| {
        properties(out, cases)?;
        cases.iter().try_for_each(|case| test_case(out, case))
    })
}

fn properties(out: &mut Out, cases: &[&Case]) -> io::Result<()> {
    if cases.iter().all(|case| case.numbers.is_empty()) {
        return Ok(());
    }
    open(out, "properties", &Vec::new(), |out| {
        for case in cases {
            for (name, number) in &case.numbers {
                let name = format!("{}: {name}", case.name);
                empty(out, "property", &vec![("name", name), ("value", number.to_string())])?;
            }
        }
        Ok(())
    })
}

fn test_case(out: &mut Out, case: &Case) -> io::Result<()> {
    let attributes =
        vec![("name", case.name.clone()), ("classname", case.suite.clone()), ("time", seconds(case.seconds))];
    let message = case.message.as_deref().unwrap_or_default();
    let told = |element, kind: &str| {
        let text = case.place.as_ref().map_or(message.to_owned(), |place| at(place, message));
        (element, vec![("type", kind.to_owned()), ("message", message.to_owned())], text)
    };
    let (element, inner, text) = match case.status {
        CaseStatus::Failed => told("failure", "check"),
        CaseStatus::Error => told("error", "error"),
        CaseStatus::Skipped => ("skipped", vec![("message", message.to_owned())], String::new()),
        CaseStatus::Passed if message.is_empty() => return empty(out, "testcase", &attributes),
        CaseStatus::Passed => ("system-out", Vec::new(), message.to_owned()),
    };
    open(out, "testcase", &attributes, |out| match text.is_empty() {
        true => empty(out, element, &inner),
        false => with_text(out, element, &inner, &text),
    })
}

fn at(place: &Place, message: &str) -> String {
    format!("{place}: {message}")
}

/// Seconds as the schema writes them.
fn seconds(seconds: f64) -> String {
    format!("{:.3}", if seconds.is_finite() { seconds.max(0.0) } else { 0.0 })
}

fn open(
    out: &mut Out,
    name: &str,
    attributes: &Attributes,
    inner: impl FnOnce(&mut Out) -> io::Result<()>,
) -> io::Result<()> {
    element(out, name, attributes, |element| element.write_inner_content(inner).map(drop))
}

fn empty(out: &mut Out, name: &str, attributes: &Attributes) -> io::Result<()> {
    element(out, name, attributes, |element| element.write_empty().map(drop))
}

fn with_text(out: &mut Out, name: &str, attributes: &Attributes, text: &str) -> io::Result<()> {
    element(out, name, attributes, |element| {
        element.write_text_content(BytesText::new(&allowed(text))).map(drop)
    })
}

fn element(
    out: &mut Out,
    name: &str,
    attributes: &[(&'static str, String)],
    end: impl FnOnce(quick_xml::writer::ElementWriter<'_, Vec<u8>>) -> io::Result<()>,
) -> io::Result<()> {
    let shown: Vec<(&str, String)> = attributes.iter().map(|(key, value)| (*key, allowed(value))).collect();
    let pairs = shown.iter().map(|(key, value)| (*key, value.as_str()));
    end(out.create_element(name).with_attributes(pairs))
}

/// The text with U+FFFD for each character that XML 1.0 does not have, escaped or not.
fn allowed(text: &str) -> String {
    let is_allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    text.chars().map(|c| if is_allowed(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::outcome::example;

    #[test]
    fn a_report_of_every_status() {
        insta::assert_snapshot!(text(&example::report()).expect("it is written"));
    }

    #[test]
    fn a_report_of_nothing_has_no_suites() {
        let report = Report { cases: Vec::new(), seconds: f64::NAN, ..example::report() };
        insta::assert_snapshot!(text(&report).expect("it is written"));
    }

    #[test]
    fn what_xml_does_not_have_is_replaced_and_the_rest_stays() {
        assert_eq!(allowed("a\0b\u{1b}[0m\u{fffe}"), "a\u{fffd}b\u{fffd}[0m\u{fffd}");
        assert_eq!(allowed("\t\n\r ä\u{fffd}\u{10000}"), "\t\n\r ä\u{fffd}\u{10000}");
    }
}
