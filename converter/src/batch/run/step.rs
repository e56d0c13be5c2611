//! One step as a child process of this program.

use super::children;
use crate::batch::plan::{Step, StepCommand};
use crate::report::message::one_line;
use crate::report::outcome::CaseStatus;
use crate::report::progress::Estimate;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
use signal_hook::low_level::signal_name;
use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};

/// Lines of stderr that are kept.
const LINES: usize = 20;
/// And bytes of each.
const LINE_BYTES: u64 = 4096;

/// What came of a step.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) status: CaseStatus,
    /// Why it did not pass.
    pub(super) message: Option<String>,
    /// The object that it printed.
    pub(super) result: Value,
    /// What it warned of.
    pub(super) warnings: Vec<String>,
    pub(super) peak: u64,
}

/// The arguments of a call, with the threads that it may take. Its own number of them holds as far as it is no larger.
pub(super) fn arguments(step: &Step, threads: usize) -> Vec<String> {
    let is_digests = step.arguments.iter().any(|argument| argument == "--digests");
    let given = threads_given(step);
    if given.is_some_and(|given| given <= threads) || is_digests {
        return step.arguments.clone();
    }
    let mut arguments: Vec<String> = Vec::new();
    let mut own = step.arguments.iter();
    while let Some(argument) = own.next() {
        if argument == THREADS {
            own.next();
        } else if !argument.strip_prefix(THREADS).is_some_and(|rest| rest.starts_with('=')) {
            arguments.push(argument.clone());
        }
    }
    arguments.extend([THREADS.to_owned(), threads.to_string()]);
    arguments
}

const THREADS: &str = "--threads";

/// The value of `--threads` among a step's arguments.
pub(super) fn threads_given(step: &Step) -> Option<usize> {
    let arguments = &step.arguments;
    let apart = arguments.iter().zip(arguments.iter().skip(1)).find(|(name, _)| *name == THREADS);
    let joined = arguments.iter().find_map(|argument| argument.strip_prefix(THREADS)?.strip_prefix('='));
    apart.map(|(_, value)| value.as_str()).or(joined)?.parse().ok()
}

/// Runs a command of this program, and waits for it.
pub(super) fn run(
    program: &Path,
    command: StepCommand,
    arguments: &[String],
    (what, threads): (&str, usize),
) -> Ran {
    match call(program, command, arguments, what, threads) {
        Ok((ended, stdout, lines)) => classified(ended.status, &stdout, &lines, ended.peak),
        Err(e) => Ran {
            status: CaseStatus::Error,
            message: Some(format!("{}: it cannot be run: {e}", program.display())),
            result: Value::Null,
            warnings: Vec::new(),
            peak: 0,
        },
    }
}

fn call(
    program: &Path,
    command: StepCommand,
    arguments: &[String],
    what: &str,
    threads: usize,
) -> io::Result<(children::Ended, Vec<u8>, Vec<String>)> {
    let mut call = Command::new(program);
    call.arg(command.name()).args(arguments).env("RAYON_NUM_THREADS", threads.to_string());
    call.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = children::start(&mut call, what)?;
    let stderr = child.stderr.take();
    let lines = std::thread::spawn(move || stderr.map(last_lines).unwrap_or_default());
    let mut stdout = Vec::new();
    let read = child.stdout.take().map_or(Ok(0), |mut out| out.read_to_end(&mut stdout));
    let ended = children::wait(&mut child)?;
    read?;
    Ok((ended, stdout, lines.join().unwrap_or_default()))
}

fn last_lines(stderr: ChildStderr) -> Vec<String> {
    let mut reader = BufReader::new(stderr);
    let mut lines = VecDeque::new();
    let mut line = Vec::new();
    while reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&line).trim().to_owned());
        line.clear();
    }
    lines.into()
}

fn classified(status: ExitStatus, stdout: &[u8], lines: &[String], peak: u64) -> Ran {
    let ran = |status, message: Option<String>, result| Ran {
        status,
        message: message.map(|message| one_line(&message)),
        result,
        warnings: lines.iter().filter_map(|line| Some(one_line(line.strip_prefix("warning: ")?))).collect(),
        peak,
    };
    let told: Option<Value> = serde_json::from_slice(stdout).ok();
    match (status.code(), status.signal()) {
        (Some(0), _) => match told {
            Some(result) => ran(CaseStatus::Passed, None, result),
            None => ran(CaseStatus::Error, Some("what it printed is no JSON object".to_owned()), Value::Null),
        },
        (Some(1), _) => {
            let result = told.unwrap_or_default();
            let reason = failed_check(&result).or_else(|| said(lines));
            ran(CaseStatus::Failed, reason.or_else(|| Some("a check failed".to_owned())), result)
        }
        (Some(2), _) => {
            let reason = said(lines).unwrap_or_else(|| "it ended with exit code 2".to_owned());
            ran(CaseStatus::Error, Some(reason), Value::Null)
        }
        (Some(code), _) => {
            if [SIGHUP, SIGINT, SIGTERM].iter().any(|signal| code == 128 + signal) {
                children::wait_for_a_signal();
            }
            let last = lines.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join(" ");
            let message = format!("it ended with exit code {code}: {last}");
            ran(CaseStatus::Error, Some(message.trim_end_matches([':', ' ']).to_owned()), Value::Null)
        }
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            if [SIGHUP, SIGINT, SIGTERM].contains(&signal) {
                children::wait_for_a_signal();
            }
            let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
            let hint = match signal {
                SIGKILL => " (hint: the system ends what takes too much memory; try a lower --memory)",
                _ => "",
            };
            let said = said(lines).map_or_else(String::new, |line| format!(": {line}"));
            ran(CaseStatus::Error, Some(format!("{name} ended it{said}{hint}")), Value::Null)
        }
    }
}

/// The last error on stderr, or else the last line.
fn said(lines: &[String]) -> Option<String> {
    let error = lines.iter().rev().find_map(|line| line.strip_prefix("error: "));
    let last = || lines.iter().rev().find(|line| !line.is_empty());
    error.map(str::to_owned).or_else(|| last().cloned())
}

/// The first check that failed, and how many there are besides.
fn failed_check(result: &Value) -> Option<String> {
    let failed: Vec<&Value> =
        result["checks"].as_array()?.iter().filter(|check| check["ok"] == false).collect();
    let first = failed.first()?;
    let name = first["name"].as_str().unwrap_or("a check");
    let number =
        |key: &str| first[key].as_f64().map_or_else(|| "no number".to_owned(), |x| format!("{x:.2e}"));
    let reason = first["reason"].as_str().map_or_else(String::new, |reason| format!(" ({reason})"));
    let more = match failed.len() {
        1 => String::new(),
        n => format!(", and {} more", n - 1),
    };
    Some(format!("{name}: {}, expected at most {}{reason}{more}", number("measured"), number("limit")))
}

/// What a conversion says that it takes. One that fails says why when it runs.
pub(super) fn estimate(program: &Path, step: &Step, what: (&str, usize)) -> Option<Estimate> {
    let mut arguments = step.arguments.clone();
    arguments.push("--estimate".to_owned());
    let ran = run(program, step.command, &arguments, what);
    let bytes = |key: &str| ran.result["estimate"][key].as_u64();
    Some(Estimate { disk: bytes("disk_bytes")?, memory: bytes("memory_bytes")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::outcome::Place;
    use serde_json::json;
    use std::path::PathBuf;

    fn step(command: StepCommand, arguments: &[&str]) -> Step {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let place = Place { file: PathBuf::from("jobs.yaml"), line: 1, column: 1 };
        Step { command, arguments, reads: Vec::new(), writes: Vec::new(), place }
    }

    #[test]
    fn threads_are_passed_on_and_no_step_takes_more() {
        let given = |command, arguments: &[&str]| super::arguments(&step(command, arguments), 3).join(" ");
        assert_eq!(given(StepCommand::Eval, &["b"]), "b --threads 3");
        assert_eq!(given(StepCommand::Eval, &["b", "--threads", "2"]), "b --threads 2");
        assert_eq!(given(StepCommand::Bench, &["--threads=2"]), "--threads=2");
        assert_eq!(given(StepCommand::Convert, &["a"]), "a --threads 3");
        assert_eq!(given(StepCommand::Bench, &["--threads=64", "b"]), "b --threads 3");
        assert_eq!(given(StepCommand::Eval, &["b", "--threads", "64", "--json"]), "b --json --threads 3");
        assert_eq!(given(StepCommand::Verify, &["b", "--digests"]), "b --digests");
    }

    fn ended(raw: i32, stdout: &str, stderr: &[&str]) -> (CaseStatus, String) {
        let lines: Vec<String> = stderr.iter().map(|line| (*line).to_owned()).collect();
        let ran = classified(ExitStatus::from_raw(raw), stdout.as_bytes(), &lines, 0);
        (ran.status, ran.message.unwrap_or_default())
    }

    #[test]
    fn how_a_child_ended_is_told_in_one_line() {
        assert_eq!(ended(0, "{}", &["warning: x"]), (CaseStatus::Passed, String::new()));
        assert_eq!(ended(0, "{", &[]).0, CaseStatus::Error);
        let lines = ["warning: x", "note", "warning: y"].map(str::to_owned);
        assert_eq!(classified(ExitStatus::from_raw(0), b"{}", &lines, 0).warnings, ["x", "y"]);
        let checks = json!({"checks": [
            {"name": "a", "ok": true},
            {"name": "b", "ok": false, "measured": 0.5, "limit": 1e-4, "reason": null},
            {"name": "c", "ok": false, "measured": null, "limit": 1.0},
        ]});
        let (status, message) = ended(1 << 8, &checks.to_string(), &["note"]);
        assert_eq!(
            (status, message.as_str()),
            (CaseStatus::Failed, "b: 5.00e-1, expected at most 1.00e-4, and 1 more")
        );
        let lines = ["warning: w", "error: m: it is not there", "note: n"];
        assert_eq!(ended(2 << 8, "", &lines), (CaseStatus::Error, "m: it is not there".to_owned()));
        let panic = ["thread 'main' panicked at a.rs:1:1:", "it broke", "note: run with RUST_BACKTRACE=1"];
        let (status, message) = ended(101 << 8, "", &panic);
        assert_eq!(status, CaseStatus::Error);
        assert!(message.starts_with("it ended with exit code 101: thread 'main' panicked"), "{message}");
        assert_eq!(ended(6, "", &["it broke"]), (CaseStatus::Error, "SIGABRT ended it: it broke".to_owned()));
        assert!(ended(9, "", &[]).1.starts_with("SIGKILL ended it (hint: "));
    }
}
