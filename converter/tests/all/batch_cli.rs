//! `dijiang batch` as it is typed: what it prints, what it reports, and how it ends.

use crate::support::home::Home;
use crate::support::without_runtime::without_runtime;
use serde_json::Value;
use std::process::{Command, Output};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

/// A directory with a file of two jobs, the second of which has these limits.
fn home(limits: &str) -> Home {
    let home = Home::empty();
    let text = format!(
        "version: 1
defaults: {{steps: [convert: {{no-verify: true}}]}}
jobs:
- {{name: a, model: {FIXTURES}/llama}}
- name: b
  model: {FIXTURES}/opt
  require: {{{limits}}}
"
    );
    std::fs::write(home.path("jobs.yaml"), text).expect("it is written");
    home
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn read(home: &Home, name: &str) -> String {
    std::fs::read_to_string(home.path(name)).expect("the file")
}

#[test]
fn what_came_of_each_job_is_a_line_of_its_own_and_an_object() {
    let home = home("softmax-sites: 0");
    let (code, stdout, stderr) = told(&home.run("batch jobs.yaml"));
    assert_eq!(code, Some(0), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "built    a: it is new",
            "built    b: it is new",
            "         softmax-sites: ok: 0 of 2 attentions stay softmax, expected at most 0"
        ]
    );
    assert!(lines[3].starts_with("2 jobs: 2 built, 0 fresh, 0 failed, 0 skipped, in "), "{stdout}");

    let (code, stdout, stderr) = told(&home.run("batch jobs.yaml --json"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let object: Value = serde_json::from_str(&stdout).expect("JSON");
    let jobs = object["jobs"].as_array().expect("jobs");
    assert_eq!(object["ok"], true);
    assert!(jobs.iter().all(|job| job["state"] == "fresh" && job["why"] == "up to date"), "{object:#}");
    let limit = &jobs[1]["thresholds"][0];
    assert_eq!(
        (&limit["name"], &limit["measured"], &limit["ok"]),
        (&"softmax-sites".into(), &0.0.into(), &true.into())
    );
}

#[test]
fn a_limit_that_fails_is_exit_1_and_is_told_quiet_or_not() {
    let home = home("bundle-bytes: 10");
    let (code, stdout, stderr) =
        told(&home.run("batch jobs.yaml -q --report junit=junit.xml --report github=summary.md"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stdout.contains("FAILED   b: bundle-bytes: ") && stdout.contains(" expected at most 10\n"),
        "{stdout}"
    );
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("error: b: bundle-bytes: "), "{stderr}");
    assert!(lines[1].starts_with("::error file=jobs.yaml,line=7,"), "annotations are results: {stderr}");
    let junit = read(&home, "junit.xml");
    assert!(junit.contains("<failure") && junit.contains("name=\"bundle-bytes\""), "{junit}");
    assert!(read(&home, "summary.md").contains("bundle-bytes"));
    let (code, annotations, _) = told(&home.run("batch jobs.yaml -q --report github"));
    assert_eq!(code, Some(1));
    assert!(
        annotations.starts_with("::error ") && annotations.contains("file=jobs.yaml,line=7,"),
        "{annotations}"
    );
}

/// Gives job `b` a model whose weights cannot be read.
fn break_b(home: &Home) {
    std::fs::create_dir(home.path("broken")).expect("a directory");
    std::fs::copy(format!("{FIXTURES}/opt/config.json"), home.path("broken/config.json")).expect("a copy");
    std::fs::write(home.path("broken/model.safetensors"), "no weights").expect("it is written");
    let text = read(home, "jobs.yaml").replace(&format!("{FIXTURES}/opt"), "broken");
    std::fs::write(home.path("jobs.yaml"), text).expect("it is written");
}

#[test]
fn what_fails_of_the_defaults_is_annotated_at_its_job() {
    let home = home("");
    break_b(&home);
    let (code, stdout, stderr) = told(&home.run("batch jobs.yaml --keep-going --report github"));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stdout.starts_with("::error file=jobs.yaml,line=5,col=9::b: convert: ./broken/"), "{stdout}");
}

#[test]
fn what_a_step_measured_is_told() {
    let home = Home::empty();
    let text = format!(
        "version: 1
jobs:
- name: a
  model: {FIXTURES}/shakespeare
  steps:
  - convert: {{no-verify: true}}
  - eval: {{perplexity: {FIXTURES}/shakespeare/valid.txt, context: 64, max-tokens: 256}}
"
    );
    std::fs::write(home.path("jobs.yaml"), text).expect("it is written");
    for state in ["built    a: it is new", "fresh    a: up to date"] {
        let (code, stdout, stderr) =
            told(&home.run("batch jobs.yaml --report json=r.json --report github=s.md"));
        assert_eq!(code, Some(0), "{stderr}");
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(lines[0], state);
        let told = lines[1]
            .strip_prefix("         eval: perplexity ")
            .and_then(|rest| rest.strip_suffix(" of valid.txt"));
        let told: f64 = told.unwrap_or_else(|| panic!("{stdout}")).parse().expect("a number");
        let report: Value = serde_json::from_str(&read(&home, "r.json")).expect("JSON");
        let number = report["cases"][1]["numbers"]["perplexity of valid.txt"].as_f64().expect("a number");
        assert!((number - told).abs() < 1e-4, "{report:#}");
        let summary = read(&home, "s.md");
        assert!(summary.contains(&format!("| perplexity of valid.txt {told:.4} |")), "{summary}");
        assert!(!summary.contains("peak") && !summary.contains("started"), "{summary}");
    }
    let (_, stdout, _) = told(&home.run("batch jobs.yaml --json"));
    let object: Value = serde_json::from_str(&stdout).expect("JSON");
    let measured = &object["jobs"][0]["measured"];
    assert_eq!(
        (&measured[0]["step"], &measured[0]["metric"]),
        (&"eval".into(), &"perplexity".into()),
        "{object:#}"
    );
}

#[test]
fn a_job_that_cannot_run_is_exit_2_and_names_its_cause_once() {
    let home = home("");
    break_b(&home);
    let (code, stdout, stderr) = told(&home.run("batch jobs.yaml --keep-going"));
    assert_eq!(code, Some(2), "{stdout}");
    assert!(stdout.starts_with("built    a: it is new\nFAILED   b: convert: "), "{stdout}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors[0].starts_with("error: b: convert: "), "{stderr}");
    assert!(errors[1].starts_with("error: 1 job could not run: b (hint: "), "{stderr}");
    assert_eq!(errors.len(), 2, "{stderr}");
}

#[test]
fn mistakes_of_the_file_are_cases_with_their_places() {
    let home = home("bundel-bytes: 10");
    for mode in ["", " --check"] {
        let call = format!("batch jobs.yaml{mode} --report github=summary.md --report json");
        let (code, stdout, stderr) = told(&home.run(&call));
        assert_eq!(code, Some(2));
        let report: Value = serde_json::from_str(&stdout).expect("JSON");
        let cases = report["cases"].as_array().expect("cases");
        assert_eq!(cases.len(), 1, "{report:#}");
        assert_eq!((&cases[0]["status"], &cases[0]["place"]["line"]), (&"error".into(), &7.into()));
        assert!(
            stderr.contains("::error file=jobs.yaml,line=7,col=13::unknown key `bundel-bytes`"),
            "{stderr}"
        );
        assert!(stderr.contains("error: jobs.yaml:7:"), "{stderr}");
    }
    let (code, stdout, _) = told(&home.run("batch jobs.yaml --only c --report json"));
    assert_eq!((code, stdout.lines().count()), (Some(2), 1));
}

#[test]
fn a_file_that_is_not_there_is_reported() {
    let home = Home::empty();
    let (code, stdout, stderr) = told(&home.run("batch missing.yaml --report junit=junit.xml"));
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    let said = "missing.yaml: there is no such file or directory, expected a file of jobs (hint: ";
    assert!(stderr.starts_with(&format!("error: {said}")), "{stderr}");
    assert_eq!(stderr.matches("missing.yaml").count(), 1, "{stderr}");
    assert!(read(&home, "junit.xml").contains("<error"));
    let (_, stdout, _) = told(&home.run("batch missing.yaml --report github"));
    assert!(
        stdout.starts_with("::error::missing.yaml: batch: there is no such file or directory"),
        "{stdout}"
    );
    assert_eq!(stdout.matches("missing.yaml").count(), 1, "{stdout}");
}

#[test]
fn digests_of_what_lies_elsewhere_are_kept() {
    let home = Home::empty();
    std::fs::create_dir(home.path("sub")).expect("it is made");
    std::os::unix::fs::symlink(format!("{FIXTURES}/llama"), home.path("model")).expect("a link");
    let text = "version: 1\njobs: [{name: a, model: ../model, steps: [convert: {no-verify: true}]}]";
    std::fs::write(home.path("sub/jobs.yaml"), text).expect("it is written");
    let (code, _, stderr) = told(&home.run("batch sub/jobs.yaml"));
    assert_eq!(code, Some(0), "{stderr}");
    let kept: Value = serde_json::from_str(&read(&home, "sub/.dijiang-batch/digests.json")).expect("JSON");
    let there = home.0.path().canonicalize().expect("it is there").join("model/config.json");
    assert!(kept["files"].get(there.to_str().expect("text")).is_some(), "{kept:#}");
}

#[test]
fn what_jobs_read_is_told_with_its_digests() {
    let home = home("");
    let (code, stdout, stderr) = told(&home.run("batch jobs.yaml --dry-run --json --digests"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let plan: Value = serde_json::from_str(&stdout).expect("JSON");
    let digests = &plan["jobs"][0]["digests"][0];
    let config = std::fs::read(format!("{FIXTURES}/llama/config.json")).expect("it is there");
    assert_eq!(
        digests["source/config.json"],
        dijiang_format::digest::digest(&config).as_str(),
        "{digests:#}"
    );
    assert!(digests["recipe adaptive"].is_string(), "{digests:#}");
    assert!(!home.path(".dijiang-batch").exists(), "nothing is written");
    assert_eq!(told(&home.run("batch jobs.yaml --digests")).0, Some(2));
}

#[test]
fn a_file_without_mistakes_is_one_case_of_a_check() {
    let home = home("");
    let (code, stdout, stderr) = told(&home.run("batch jobs.yaml --check --report json"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(report["cases"][0]["message"], "2 jobs, 2 steps");
    let (code, _, stderr) = told(&home.run("batch jobs.yaml --json --report junit"));
    assert_eq!(code, Some(2));
    assert!(
        stderr.starts_with("error: --json and --report junit would both be printed on stdout"),
        "{stderr}"
    );
}

#[test]
fn what_was_proved_without_a_runtime_is_proved_anew_with_it() {
    if dijiang_runtime::OrtRuntime::installed().is_none() && std::env::var_os("DIJIANG_REQUIRE_ORT").is_none()
    {
        return;
    }
    let home = home("");
    let text = read(&home, "jobs.yaml").replace("no-verify: true", "seed: 1");
    std::fs::write(home.path("jobs.yaml"), text).expect("it is written");
    let mut without = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    without_runtime(&mut without).current_dir(home.0.path()).args(["batch", "jobs.yaml", "--only", "a"]);
    let (code, _, stderr) = told(&without.output().expect("it runs"));
    assert_eq!(code, Some(0), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    let is_told = |line: &str, of: &str| line.starts_with("warning: a: ") && line.contains(of);
    assert!(lines.len() == 3 && lines[0] == "a: it is new", "{stderr}");
    assert!(is_told(lines[1], "everything in ONNX Runtime is skipped"), "{stderr}");
    assert!(is_told(lines[2], "tokenizer.json"), "{stderr}");
    assert!(told(&without.output().expect("it runs")).1.starts_with("fresh "));
    let (code, stdout, _) = told(&home.run("batch jobs.yaml --only a"));
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("built    a: ONNX Runtime was missing, and is 1."), "{stdout}");
}
