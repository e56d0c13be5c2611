//! One job: what is left to do of it, its steps, and its limits.

use super::RunOptions;
use super::digests::Digester;
use super::engine::Engine;
use super::fresh::{self, Left};
use super::memory;
use super::names::Names;
use super::outcome::JobState;
use super::record::{Records, StepRecord};
use super::step::{self, Ran};
use super::threshold::{Evidence, judge};
use crate::batch::plan::{Job, Plan, Step, StepCommand};
use crate::bundle::lock::{BundleLock, LockError};
use crate::report::outcome::{Case, CaseStatus, Place};
use crate::report::progress::Estimate;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What all jobs of a run share.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) plan: &'a Plan,
    pub(super) options: &'a RunOptions,
    pub(super) program: PathBuf,
    pub(super) records: Records,
    pub(super) digester: Digester,
    pub(super) engine: Engine,
    pub(super) start: Instant,
}

/// What is known of a job before it runs.
#[derive(Debug)]
pub(super) enum Looked {
    /// Nothing is left to do, or nothing can be done.
    Over(End),
    Ready(Box<Work>),
    /// Another process works on it.
    Held(String),
}

/// A job that can run.
#[derive(Debug)]
pub(super) struct Work {
    left: Left,
    /// Held until the job is done, so that no other process works on it.
    lock: BundleLock,
    told: Option<Estimate>,
    /// Whether a bundle of an earlier run is in the way.
    replaces: bool,
    /// What its steps are taken to need, at most.
    pub(super) memory: u64,
    /// What its steps say themselves.
    pub(super) threads: Option<usize>,
}

impl Work {
    pub(super) fn reason(&self) -> &str {
        self.left.reason.as_deref().unwrap_or("it is not done")
    }
}

/// How a job ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    /// What it would be if no case is bad.
    pub(super) state: JobState,
    /// Why it was built, or was not.
    pub(super) why: String,
    pub(super) cases: Vec<Case>,
    /// The steps that are done.
    pub(super) steps: Arc<[StepRecord]>,
    /// The checks that its steps made, those of one that failed too.
    pub(super) checks: Vec<Value>,
}

impl End {
    pub(super) fn is_good(&self) -> bool {
        self.cases.iter().all(|case| super::is_good(case.status))
    }

    /// Every step and limit of a job that does not run.
    pub(super) fn skipped(job: &Job, reason: &str) -> Self {
        let mut cases = Cases::new(job);
        cases.skip_steps(0..job.steps.len(), reason);
        cases.skip_limits(reason);
        Self::without_steps(JobState::Skipped, reason, cases)
    }

    fn without_steps(state: JobState, reason: &str, Cases { cases, .. }: Cases<'_>) -> Self {
        Self { state, why: reason.to_owned(), cases, steps: Arc::from([]), checks: Vec::new() }
    }

    /// A job that cannot begin.
    pub(super) fn refused(job: &Job, reason: &str) -> Self {
        let mut cases = Cases::new(job);
        cases.add(0, CaseStatus::Error, Some(reason.to_owned()));
        cases.skip_steps(1..job.steps.len(), "the job did not begin");
        cases.skip_limits("the job did not begin");
        Self::without_steps(JobState::Failed, reason, cases)
    }
}

/// The cases of a job as they come.
#[derive(Debug)]
struct Cases<'a> {
    job: &'a Job,
    cases: Vec<Case>,
}

impl<'a> Cases<'a> {
    fn new(job: &'a Job) -> Self {
        Self { job, cases: Vec::new() }
    }

    fn add(&mut self, step: usize, status: CaseStatus, message: Option<String>) -> &mut Case {
        let name = step_name(&self.job.steps, step);
        let place = self.job.steps.get(step).map_or(&self.job.place, |step| &step.place);
        self.push(name, status, message, place.clone())
    }

    fn push(&mut self, name: String, status: CaseStatus, message: Option<String>, place: Place) -> &mut Case {
        let (suite, numbers) = (self.job.name.clone(), BTreeMap::new());
        let case = Case { suite, name, status, seconds: 0.0, message, place: Some(place), numbers };
        self.cases.push(case);
        let last = self.cases.len() - 1;
        &mut self.cases[last]
    }

    fn skip_steps(&mut self, steps: std::ops::Range<usize>, reason: &str) {
        steps.for_each(|step| {
            self.add(step, CaseStatus::Skipped, Some(reason.to_owned()));
        });
    }

    fn skip_limits(&mut self, reason: &str) {
        for threshold in &self.job.thresholds {
            let name = threshold.quantity.name().to_owned();
            self.push(name, CaseStatus::Skipped, Some(reason.to_owned()), threshold.place.clone());
        }
    }

    fn judge(&mut self, steps: &[StepRecord], baseline: Option<&[StepRecord]>) {
        let evidence = Evidence { job: self.job, steps, baseline };
        self.cases.extend(self.job.thresholds.iter().map(|threshold| judge(threshold, &evidence)));
    }
}

/// The command; with a number where it is there more than once.
fn step_name(steps: &[Step], at: usize) -> String {
    let Some(step) = steps.get(at) else { return "job".to_owned() };
    let before = steps[..at].iter().filter(|other| other.command == step.command).count();
    match before {
        0 => step.command.name().to_owned(),
        n => format!("{} {}", step.command.name(), n + 1),
    }
}

impl Context<'_> {
    /// Compares a job with its record, and asks how much its steps take.
    pub(super) fn look(&self, job: &Job, baseline: Option<&[StepRecord]>) -> Looked {
        let lock = match BundleLock::acquire(&self.records.place(&job.name)) {
            Ok(lock) => lock,
            Err(LockError::Held { holder, .. }) => return Looked::Held(holder),
            Err(e) => return Looked::Over(End::refused(job, &e.to_string())),
        };
        let names = Names::of(self.plan, job);
        let old = self.records.read(&job.name);
        let is_ours = self.records.names(&names.bundle())
            || old.as_ref().is_some_and(|old| old.bundle == names.bundle());
        let left = fresh::left(&names, (&self.digester, &self.engine), old, self.options.force);
        if left.from() == job.steps.len() {
            return Looked::Over(up_to_date(job, left, baseline));
        }
        let replaces = left.from() == 0 && is_in_the_way(&job.bundle);
        if replaces && !is_ours {
            let bundle = job.bundle.display();
            let reason = format!(
                "{bundle}: it is there already, and no record of this batch names it (hint: `mv {bundle} {bundle}.old`, or give the job another output)"
            );
            return Looked::Over(End::refused(job, &reason));
        }
        let convert =
            job.steps.first().filter(|step| left.from() == 0 && step.command == StepCommand::Convert);
        let what = format!("{}: its estimate", job.name);
        let told = convert.and_then(|step| step::estimate(&self.program, step, (&what, 1)));
        let rest = &job.steps[left.from()..];
        let memory = rest.iter().map(|step| memory::of_step(job, step, told)).max().unwrap_or(0);
        let threads = rest.iter().filter_map(step::threads_given).max();
        Looked::Ready(Box::new(Work { left, lock, told, replaces, memory, threads }))
    }

    /// Runs the steps that are left, and judges the limits.
    pub(super) fn work(&self, job: &Job, work: Work, threads: usize, baseline: Option<&[StepRecord]>) -> End {
        let Work { left, lock: _lock, told, replaces, .. } = work;
        let (from, reason) = (left.from(), left.reason.clone());
        let Left { mut record, reads, .. } = left;
        let names = Names::of(self.plan, job);
        let mut cases = Cases::new(job);
        let mut checks: Vec<Value> = record.steps.iter().flat_map(|step| checks_of(&step.result)).collect();
        let why = reason.clone().unwrap_or_default();
        let end = |cases: Cases<'_>, steps: Vec<StepRecord>, checks| End {
            state: JobState::Built,
            why: why.clone(),
            cases: cases.cases,
            steps: steps.into(),
            checks,
        };
        cases.skip_steps(0..from, UP_TO_DATE);
        // From now on the bundle is known to be this batch's.
        if let Err(e) = self.records.write(&record) {
            cases.add(from, CaseStatus::Error, Some(unwritten(&e)));
            return end(broken(cases, from), record.steps, checks);
        }
        for (at, step) in job.steps.iter().enumerate().skip(from) {
            let mut arguments = step::arguments(step, threads);
            let is_forced = arguments.iter().any(|argument| argument == "--force");
            if replaces && step.command == StepCommand::Convert && !is_forced {
                arguments.push("--force".to_owned());
            }
            let started = self.start.elapsed().as_secs_f64();
            let what = format!("{}: step {}", job.name, step.command.name());
            let ran = step::run(&self.program, step.command, &arguments, (&what, threads));
            let ended = self.start.elapsed().as_secs_f64();
            let Ran { status, message, result, peak } = ran;
            let told = memory::of_step(job, step, told);
            let case = cases.add(at, status, message.or_else(|| reason.clone().filter(|_| at == from)));
            case.seconds = ended - started;
            let numbers = [
                ("estimate_bytes", told as f64),
                ("peak_bytes", peak as f64),
                ("started", started),
                ("ended", ended),
                ("threads", threads as f64),
            ];
            case.numbers.extend(numbers.map(|(name, number)| (name.to_owned(), number)));
            let result = names.result(step, result);
            checks.extend(checks_of(&result));
            if status != CaseStatus::Passed {
                return end(broken(cases, at), record.steps, checks);
            }
            record.steps.push(StepRecord {
                command: step.command.name().to_owned(),
                arguments: names.arguments(step),
                reads: reads.get(at).cloned().unwrap_or_default(),
                bundle: fresh::writes(step.command).then(|| self.digester.files("", &job.bundle)),
                seconds: ended - started,
                peak,
                result,
            });
            if let Err(e) = self.records.write(&record) {
                case_of(&mut cases, unwritten(&e));
                return end(broken(cases, at), record.steps, checks);
            }
        }
        cases.judge(&record.steps, baseline);
        end(cases, record.steps, checks)
    }
}

/// A job that stopped at a step.
fn broken(mut cases: Cases<'_>, at: usize) -> Cases<'_> {
    let job = cases.job;
    let reason = format!("step {} did not pass", step_name(&job.steps, at));
    cases.skip_steps(at + 1..job.steps.len(), &reason);
    cases.skip_limits(&reason);
    cases
}

/// The checks in what a step printed.
fn checks_of(result: &Value) -> Vec<Value> {
    result["checks"].as_array().cloned().unwrap_or_default()
}

/// What is said of a step that is not run again.
const UP_TO_DATE: &str = "up to date";

/// The limits are judged anew: they may have changed.
fn up_to_date(job: &Job, left: Left, baseline: Option<&[StepRecord]>) -> End {
    let mut cases = Cases::new(job);
    cases.skip_steps(0..job.steps.len(), UP_TO_DATE);
    cases.judge(&left.record.steps, baseline);
    let steps = left.record.steps;
    let checks = steps.iter().flat_map(|step| checks_of(&step.result)).collect();
    End {
        state: JobState::Fresh,
        why: UP_TO_DATE.to_owned(),
        cases: cases.cases,
        steps: steps.into(),
        checks,
    }
}

fn unwritten(error: &std::io::Error) -> String {
    format!("its record cannot be written: {error} (hint: make room, then run the same command)")
}

/// The last case is an error after all.
fn case_of(cases: &mut Cases<'_>, message: String) {
    if let Some(last) = cases.cases.last_mut() {
        (last.status, last.message) = (CaseStatus::Error, Some(message));
    }
}

/// Whether something is where a bundle goes.
fn is_in_the_way(bundle: &Path) -> bool {
    let is_empty = std::fs::read_dir(bundle).is_ok_and(|mut entries| entries.next().is_none());
    (bundle.exists() || bundle.is_symlink()) && !is_empty
}
