//! `--report FORMAT[=FILE]`, of the commands whose work is cases that hold or do not.

use super::{Failure, Outcome, show};
use crate::report::github::MOST_SUMMARY;
use crate::report::message::one_line;
use crate::report::outcome::{Case, CaseStatus, Report};
use crate::report::{github, json, junit};
use dijiang_runtime::write_file;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

/// The file that GitHub Actions shows as the summary of a job.
const SUMMARY: &str = "GITHUB_STEP_SUMMARY";

/// Where to write what came of it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ReportArgs {
    /// Write what came of it as json, junit (XML) or github (annotations, and a summary appended to
    /// $GITHUB_STEP_SUMMARY), also where it fails: to stdout, where nothing else is printed then, or to FILE. With
    /// github=FILE the summary is appended to FILE, and the annotations go to stderr. May be given several times
    #[arg(long, value_name = "FORMAT[=FILE]")]
    report: Vec<Request>,
}

/// One report that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    format: Format,
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Junit,
    Github,
}

impl Format {
    const ALL: [Self; 3] = [Self::Json, Self::Junit, Self::Github];

    fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Junit => "junit",
            Self::Github => "github",
        }
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, file) = text.split_once('=').map_or((text, None), |(name, file)| (name, Some(file)));
        let known = Format::ALL.into_iter().find(|format| format.name() == name);
        let format = known.ok_or_else(|| {
            let names = Format::ALL.map(Format::name).join(", ");
            format!(
                "no report is called `{name}` (expected one of {names}) (hint: --report junit=report.xml)"
            )
        })?;
        match file {
            Some("") => {
                Err(format!("no file is named after `=` (hint: --report {name}, or --report {name}=FILE)"))
            }
            file => Ok(Self { format, file: file.map(PathBuf::from) }),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            None => write!(f, "--report {}", self.format.name()),
            Some(file) => write!(f, "--report {}={}", self.format.name(), file.display()),
        }
    }
}

/// A report cannot be written.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("{first} and {second} would both be printed on stdout (hint: name a file, as in {second}=FILE)")]
    SharedStdout { first: String, second: String },
    #[error("{}: two reports would be written to it (hint: name another file)", file.display())]
    SharedFile { file: PathBuf },
    #[error("{request}: {} is no directory (hint: mkdir -p {})", directory.display(), directory.display())]
    NoDirectory { request: Request, directory: PathBuf },
    #[error("{}: it is a directory, expected a file (hint: {request}/FILE)", request.file.as_deref().unwrap_or(Path::new("")).display())]
    Directory { request: Request },
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    #[error("the report as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the report as XML: {0}")]
    Xml(io::Error),
}

impl ReportArgs {
    /// Runs a command and writes the reports of it, also where it could not be carried out. The command adds its cases,
    /// whose suite is the bundle; `json` is whether it prints an object on stdout.
    pub(super) fn of(
        &self,
        command: &str,
        bundle: &Path,
        json: bool,
        work: impl FnOnce(&mut Vec<Case>) -> Result<Outcome, Failure>,
    ) -> Result<Outcome, Failure> {
        self.check(json)?;
        let start = Instant::now();
        let mut cases = Vec::new();
        let outcome = work(&mut cases);
        let seconds = start.elapsed().as_secs_f64();
        if let Err(failure) = &outcome {
            cases.push(Case {
                suite: bundle.display().to_string(),
                name: command.to_owned(),
                status: CaseStatus::Error,
                seconds,
                message: Some(one_line(&failure.to_string())),
                place: None,
                numbers: BTreeMap::new(),
            });
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let written = self.write(&Report { command: command.to_owned(), version, seconds, cases });
        match (outcome, written) {
            (Err(failure), Err(second)) => {
                show::error(&second.to_string());
                Err(failure)
            }
            (outcome, written) => written.and(outcome),
        }
    }

    /// Whether a report is what is printed on stdout.
    pub(super) fn on_stdout(&self) -> bool {
        self.report.iter().any(|request| request.file.is_none())
    }

    /// Whether the reports can be written, as far as that can be told before the work.
    pub(super) fn check(&self, json: bool) -> Result<(), Failure> {
        let printed = self.report.iter().filter(|request| request.file.is_none()).map(Request::to_string);
        let mut printed = json.then(|| "--json".to_owned()).into_iter().chain(printed);
        if let (Some(first), Some(second)) = (printed.next(), printed.next()) {
            return Err(ReportError::SharedStdout { first, second }.into());
        }
        let mut files = BTreeSet::new();
        for request in &self.report {
            let Some(file) = &request.file else { continue };
            request.check(file)?;
            if !files.insert(real(file)) {
                return Err(ReportError::SharedFile { file: file.clone() }.into());
            }
        }
        Ok(())
    }

    /// Writes every report that was asked for. One that cannot be written leaves the others alone; the first of those is
    /// returned.
    pub(super) fn write(&self, report: &Report) -> Result<(), Failure> {
        let written = self.report.iter().map(|request| request.write(report));
        let mut failures = written.filter_map(Result::err).collect::<Vec<_>>().into_iter();
        let first = failures.next();
        failures.for_each(|failure| show::error(&failure.to_string()));
        first.map_or(Ok(()), |failure| Err(failure.into()))
    }
}

/// A file by the directory that it is in, whatever that is called here.
fn real(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = || Some(parent.canonicalize().ok()?.join(file.file_name()?));
    file.canonicalize().ok().or_else(beside).unwrap_or_else(|| file.to_owned())
}

impl Request {
    fn check(&self, file: &Path) -> Result<(), ReportError> {
        if file.is_dir() {
            return Err(ReportError::Directory { request: self.clone() });
        }
        match file.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            Some(parent) => {
                Err(ReportError::NoDirectory { request: self.clone(), directory: parent.to_owned() })
            }
            None => Ok(()),
        }
    }

    fn write(&self, report: &Report) -> Result<(), ReportError> {
        let text = match self.format {
            Format::Json => json::text(report)?,
            Format::Junit => junit::text(report).map_err(ReportError::Xml)?,
            Format::Github => return self.write_github(report),
        };
        match &self.file {
            None => show::text(&text),
            Some(file) => write_file(file, text.as_bytes()).map_err(failed(file))?,
        }
        Ok(())
    }

    fn write_github(&self, report: &Report) -> Result<(), ReportError> {
        let annotations = github::annotations(report);
        match &self.file {
            None => show::text(&annotations),
            // They are results, which a quiet call has too.
            Some(_) => annotations.lines().for_each(show::told),
        }
        let file = self.file.clone().or_else(|| std::env::var_os(SUMMARY).map(PathBuf::from));
        match file.filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => append_summary(&file, report).map_err(failed(&file)),
            None => Ok(()),
        }
    }
}

/// Appends the summary, or leaves what was there.
fn append_summary(file: &Path, report: &Report) -> io::Result<()> {
    let is_new = !file.exists();
    let mut out = OpenOptions::new().create(true).append(true).open(file)?;
    let before = out.metadata()?;
    let there = usize::try_from(before.len()).unwrap_or(usize::MAX);
    let text = github::summary(report, MOST_SUMMARY.saturating_sub(there));
    let written = out.write_all(text.as_bytes());
    if written.is_err() && before.is_file() {
        // What cannot be taken back either is told by the same error.
        let _ = if is_new { std::fs::remove_file(file) } else { out.set_len(before.len()) };
    }
    written
}

fn failed(file: &Path) -> impl Fn(io::Error) -> ReportError {
    move |source| ReportError::Io { file: file.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(requests: &[&str]) -> ReportArgs {
        let report = requests.iter().map(|text| text.parse().expect("a request")).collect();
        ReportArgs { report }
    }

    fn refused(requests: &[&str], json: bool) -> String {
        parsed(requests).check(json).expect_err("it is refused").to_string()
    }

    #[test]
    fn a_request_is_a_format_and_perhaps_a_file() {
        let request = |text: &str| text.parse::<Request>();
        assert_eq!(request("json"), Ok(Request { format: Format::Json, file: None }));
        assert_eq!(
            request("junit=a=b.xml"),
            Ok(Request { format: Format::Junit, file: Some("a=b.xml".into()) })
        );
        insta::assert_snapshot!(request("xml=a").expect_err("it is refused"));
        insta::assert_snapshot!(request("github=").expect_err("it is refused"));
    }

    #[test]
    fn a_report_that_cannot_be_written_leaves_the_others_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let [gone, there] = ["gone/a", "b"].map(|name| home.path().join(name));
        let requests = [format!("json={}", gone.display()), format!("junit={}", there.display())];
        let report =
            Report { command: "batch".to_owned(), version: String::new(), seconds: 0.0, cases: Vec::new() };
        let [first, second] = &requests;
        let failure = parsed(&[first, second]).write(&report).expect_err("one of them cannot be written");
        assert!(failure.to_string().starts_with(&format!("{}: ", gone.display())), "{failure}");
        assert!(there.exists());
    }

    #[test]
    fn stdout_and_files_are_written_once() {
        for fine in [&["json", "junit=a", "github=b"][..], &["json=a", "junit=b"], &[]] {
            parsed(fine).check(false).expect("it is fine");
        }
        parsed(&["json=a"]).check(true).expect("a file does not disturb --json");
        insta::assert_snapshot!(refused(&["json"], true));
        insta::assert_snapshot!(refused(&["junit", "github"], false));
        insta::assert_snapshot!(refused(&["junit=a", "github=a"], false));
        assert!(
            refused(&["json=a", "junit=./a"], false).starts_with("./a: two reports would be written to it")
        );
        insta::assert_snapshot!(refused(&["json=missing/a"], false));
        insta::assert_snapshot!(refused(&["json=/"], false));
    }
}
