//! `--report` of `convert` and `verify`: what is written where, in the shape that readers of it expect.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

struct Home(TempDir);

impl Home {
    /// With a small model called `model`.
    fn new() -> Self {
        let home = Self(tempfile::tempdir().expect("a temporary directory"));
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama");
        let fixture = fixture.canonicalize().expect("the fixture");
        std::os::unix::fs::symlink(fixture, home.path("model")).expect("a link");
        home
    }

    /// With a bundle of it called `bundle`.
    fn with_bundle() -> Self {
        let home = Self::new();
        let ran = home.run("convert model -o bundle --no-verify", &[]);
        assert_eq!(ran.status.code(), Some(0), "{}", stderr(&ran));
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("the file")
    }

    fn run(&self, arguments: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(self.0.path()).args(arguments.split(' ')).stdin(Stdio::null());
        command.env_remove("DIJIANG_LOG").env_remove("GITHUB_STEP_SUMMARY").envs(variables.iter().copied());
        command.output().expect("it runs")
    }

    /// Makes the proof fail: the bundle lacks a file that its manifest lists.
    fn spoil(&self) {
        std::fs::remove_file(self.path("bundle/softmax.onnx")).expect("it is removed");
    }
}

fn stdout(ran: &Output) -> String {
    String::from_utf8(ran.stdout.clone()).expect("UTF-8")
}

fn stderr(ran: &Output) -> String {
    String::from_utf8(ran.stderr.clone()).expect("UTF-8")
}

fn schema() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas/cases.json");
    serde_json::from_str(&std::fs::read_to_string(file).expect("the schema")).expect("JSON")
}

/// What the schema says against the report.
fn faults(report: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    validator.iter_errors(report).map(|fault| format!("{}: {fault}", fault.instance_path())).collect()
}

fn report(text: &str) -> Value {
    let report: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(text.lines().count(), 1);
    assert_eq!(faults(&report), [""; 0], "{report:#}");
    report
}

fn cases(report: &Value) -> &[Value] {
    report["cases"].as_array().expect("cases")
}

fn of_status<'a>(report: &'a Value, status: &str) -> Vec<&'a Value> {
    cases(report).iter().filter(|case| case["status"] == status).collect()
}

#[test]
fn a_conversion_is_a_case_and_so_is_every_row_of_its_proof() {
    let home = Home::new();
    let ran = home.run("convert model -o bundle --json --report json=report.json", &[]);
    assert_eq!(ran.status.code(), Some(0), "{}", stderr(&ran));
    let printed: Value = serde_json::from_str(&stdout(&ran)).expect("--json is as without a report");
    let report = report(&home.read("report.json"));
    let rows = printed["checks"].as_array().expect("checks");
    assert_eq!(cases(&report).len(), rows.len() + 1);
    let first = &cases(&report)[0];
    assert_eq!(
        (&first["suite"], &first["name"], &first["status"]),
        (&json!("bundle"), &json!("convert"), &json!("passed"))
    );
    assert_eq!(first["numbers"]["bytes_written"].as_f64(), printed["bytes_written"].as_f64());
    for (case, row) in cases(&report)[1..].iter().zip(rows) {
        let status = match row["status"].as_str() {
            Some("held" | "reported") => "passed",
            Some("failed") => "failed",
            _ => "skipped",
        };
        assert_eq!((&case["name"], &case["status"]), (&row["name"], &json!(status)));
        assert_eq!(case["numbers"].get("limit").unwrap_or(&Value::Null), &row["limit"]);
    }
    let seconds: f64 = cases(&report).iter().filter_map(|case| case["seconds"].as_f64()).sum();
    let whole = report["seconds"].as_f64().expect("seconds");
    assert!(seconds > 0.0 && seconds <= whole && whole < seconds + 1.0, "{seconds} of {whole}");
}

#[test]
fn a_report_on_stdout_is_all_that_is_there() {
    let home = Home::with_bundle();
    let ran = home.run("verify bundle --runtime tract --report json", &[]);
    assert_eq!(ran.status.code(), Some(0), "{}", stderr(&ran));
    let found = report(&stdout(&ran));
    assert_eq!(found["command"], "verify");
    let skipped = of_status(&found, "skipped");
    assert_eq!(skipped[0]["message"], "only tract was asked for");

    let junit = home.run("verify bundle --runtime tract --report junit", &[]);
    assert!(
        stdout(&junit).starts_with("<?xml") && stdout(&junit).ends_with("</testsuites>\n"),
        "{}",
        stdout(&junit)
    );
    // Annotations are of what went wrong, and nothing did.
    let github = home.run("verify bundle --runtime tract --report github", &[]);
    assert_eq!((github.status.code(), stdout(&github)), (Some(0), String::new()));
}

#[test]
fn a_failed_check_is_a_failed_case_and_exit_1() {
    let home = Home::with_bundle();
    home.spoil();
    let ran = home.run("verify bundle --runtime tract --report json --report junit=report.xml", &[]);
    assert_eq!(ran.status.code(), Some(1), "{}", stderr(&ran));
    let found = report(&stdout(&ran));
    let failed = of_status(&found, "failed");
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["message"], "1 is not at most 0: softmax.onnx");
    let totals = check_junit(&home.read("report.xml"));
    assert_eq!((totals.failures, totals.errors), (1, 0));
    assert_eq!(totals.tests, cases(&found).len());
}

#[test]
fn a_reader_that_went_away_changes_no_outcome() {
    let home = Home::with_bundle();
    home.spoil();
    for format in ["json", "github"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        let call = format!("verify bundle --runtime tract --report {format} --report junit={format}.xml");
        command.current_dir(home.0.path()).args(call.split(' ')).env_remove("GITHUB_STEP_SUMMARY");
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        drop(child.stdout.take());
        assert_eq!(child.wait().expect("it ends").code(), Some(1), "{format}");
        assert_eq!(check_junit(&home.read(&format!("{format}.xml"))).failures, 1);
    }
}

#[test]
fn what_cannot_run_is_an_error_case_and_exit_2() {
    let home = Home::new();
    let ran = home.run("convert missing -o bundle --report json --report junit=report.xml", &[]);
    assert_eq!(ran.status.code(), Some(2));
    let found = report(&stdout(&ran));
    let [case] = cases(&found) else { panic!("{found:#}") };
    assert_eq!((&case["name"], &case["status"]), (&json!("convert"), &json!("error")));
    assert_eq!(format!("error: {}\n", case["message"].as_str().expect("a message")), stderr(&ran));
    let totals = check_junit(&home.read("report.xml"));
    assert_eq!((totals.tests, totals.errors), (1, 1));

    let ran = home.run("convert model -o bundle --recipe none.yaml --report json", &[]);
    assert_eq!((ran.status.code(), of_status(&report(&stdout(&ran)), "error").len()), (Some(2), 1));
}

#[test]
fn github_gets_annotations_and_a_summary_that_is_appended_to() {
    let home = Home::with_bundle();
    home.spoil();
    std::fs::write(home.path("summary.md"), "# before\n").expect("it is written");
    let variables = [("GITHUB_STEP_SUMMARY", "summary.md")];
    let ran = home.run("verify bundle --runtime tract --report github", &variables);
    assert_eq!(ran.status.code(), Some(1));
    insta::assert_snapshot!(stdout(&ran));
    let summary = home.read("summary.md");
    assert!(summary.starts_with("# before\n## dijiang verify: 1 failed, "), "{summary}");
    assert!(summary.contains("\n| **failed** | bundle | "), "{summary}");

    // With a file the summary is there alone, and stdout stays the command's own.
    let ran = home.run("verify bundle --runtime tract --json --report github=own.md", &variables);
    let printed: Value = serde_json::from_str(&stdout(&ran)).expect("JSON");
    assert_eq!(printed["ok"], json!(false));
    assert!(stderr(&ran).starts_with("::error::bundle: "), "{}", stderr(&ran));
    assert!(home.read("own.md").starts_with("## dijiang verify: 1 failed, "));
    assert_eq!(home.read("summary.md"), summary);

    // Elsewhere there is no summary to append to.
    let ran = home.run("verify bundle --runtime tract --report github", &[]);
    assert_eq!((ran.status.code(), stdout(&ran).lines().count()), (Some(1), 1));
}

#[test]
fn reports_that_cannot_be_written_are_refused_before_the_work() {
    let home = Home::new();
    let refused = |options: &str| {
        let ran = home.run(&format!("convert model -o bundle {options}"), &[]);
        assert_eq!((ran.status.code(), stdout(&ran)), (Some(2), String::new()), "{}", stderr(&ran));
        assert!(!home.path("bundle").exists());
        stderr(&ran)
    };
    let texts = [
        "--report xml",
        "--report junit=",
        "--json --report json",
        "--report json --report github",
        "--report json=a --report junit=a",
        "--report json=missing/report.json",
        "--report json=model",
        "--stop-after 1 --report json",
    ];
    let told: Vec<String> =
        texts.iter().map(|options| format!("{options}\n{}\n", refused(options))).collect();
    let told = told.concat();
    insta::assert_snapshot!(told);
}

#[test]
fn the_schema_refuses_what_is_no_report() {
    let place = json!({"file": "jobs.yaml", "line": 1, "column": 2});
    let case = json!({"suite": "a", "name": "b", "status": "failed", "seconds": 0.5, "message": "no", "place": place, "numbers": {"x": 1, "y": null}});
    let whole = json!({"command": "batch", "version": "1", "seconds": 1.0, "cases": [case]});
    assert_eq!(faults(&whole), [""; 0]);
    let changes = [
        ("/cases/0/status", json!("fine")),
        ("/cases/0/message", json!(null)),
        ("/cases/0/place/line", json!(0)),
        ("/cases/0/numbers/x", json!("1")),
        ("/cases/0/seconds", json!(-1)),
        ("/cases/0/suite", json!(1)),
        ("/command", json!("eval")),
        ("/cases", json!({})),
    ];
    for (pointer, value) in changes {
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).expect("it is there") = value;
        assert_eq!(faults(&changed).len(), 1, "{pointer}: {:?}", faults(&changed));
    }
    let mut extra = whole;
    extra["more"] = json!(1);
    assert_eq!(faults(&extra).len(), 1);
}

/// The numbers that a JUnit document states of its whole.
#[derive(Debug, Default, PartialEq)]
struct Totals {
    tests: usize,
    failures: usize,
    errors: usize,
}

/// Elements, the elements that they stand in, and the attributes that they have and must have, by `junit-10.xsd`.
const ELEMENTS: [(&str, &str, &[&str], &[&str]); 8] = [
    ("testsuites", "", &["name", "time", "tests", "failures", "errors"], &[]),
    (
        "testsuite",
        "testsuites",
        &["name", "time", "skipped", "tests", "failures", "errors"],
        &["name", "tests", "failures", "errors"],
    ),
    ("properties", "testsuite", &[], &[]),
    ("property", "properties", &["name", "value"], &["name", "value"]),
    ("testcase", "testsuite", &["name", "classname", "time"], &["name"]),
    ("failure", "testcase", &["type", "message"], &[]),
    ("error", "testcase", &["type", "message"], &[]),
    ("skipped", "testcase", &["type", "message"], &[]),
];

/// Holds a document to the schema, and its numbers to what is in it.
fn check_junit(text: &str) -> Totals {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = true;
    let (mut open, mut stated, mut counted) = (Vec::<String>::new(), Totals::default(), Totals::default());
    loop {
        let (start, is_empty) = match reader.read_event().expect("XML") {
            Event::Eof => break,
            Event::End(_) => {
                open.pop();
                continue;
            }
            Event::Start(start) => (start.into_owned(), false),
            Event::Empty(start) => (start.into_owned(), true),
            _ => continue,
        };
        let name = check_element(&start, open.last().map_or("", String::as_str));
        match name.as_str() {
            "testsuites" => stated = totals(&start),
            "testcase" => counted.tests += 1,
            "failure" => counted.failures += 1,
            "error" => counted.errors += 1,
            _ => (),
        }
        if !is_empty {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(stated, counted);
    stated
}

fn check_element(start: &BytesStart<'_>, parent: &str) -> String {
    let name = start.name().as_ref().to_owned();
    if name == "system-out" {
        assert_eq!(parent, "testcase");
        return name;
    }
    let row = ELEMENTS.iter().find(|(known, ..)| *known == name);
    let (_, above, known, needed) = row.unwrap_or_else(|| panic!("<{name}>"));
    assert_eq!(*above, parent, "<{name}>");
    let keys: Vec<String> =
        start.attributes().map(|a| a.expect("an attribute").key.as_ref().to_owned()).collect();
    assert!(keys.iter().all(|key| known.contains(&key.as_str())), "<{name}>: {keys:?}");
    assert!(needed.iter().all(|key| keys.iter().any(|k| k == key)), "<{name}>: {keys:?}");
    name
}

fn totals(start: &BytesStart<'_>) -> Totals {
    let number = |key: &str| {
        let attribute = start.try_get_attribute(key).expect("attributes").expect("it is there");
        attribute.value.parse().expect("a number")
    };
    Totals { tests: number("tests"), failures: number("failures"), errors: number("errors") }
}
