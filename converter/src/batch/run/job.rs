//! One job: what is left to do of it, its steps, and its limits.

use super::RunOptions;
use super::digests::{Found, readable, whole};
use super::fresh::{self, Left, Surroundings};
use super::measured::Measured;
use super::memory;
use super::names::Names;
use super::outcome::JobState;
use super::record::{Maker, Record, Records, StepRecord};
use super::step::{self, Ran};
use super::threshold::{Evidence, judge};
use crate::batch::plan::{Job, Plan, Step, StepCommand};
use crate::bundle::lock::{BundleLock, LockError};
use crate::report::outcome::{Case, CaseStatus, Place};
use crate::report::progress::Estimate;
use dijiang_format::files::MANIFEST;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// What all jobs of a run share.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) plan: &'a Plan,
    pub(super) options: &'a RunOptions,
    pub(super) program: PathBuf,
    pub(super) records: Records,
    pub(super) surroundings: Surroundings,
    /// Whoever works holds it with others, and who measures time alone.
    pub(super) quiet: RwLock<()>,
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
    /// What is likely wrong with the file of jobs.
    pub(super) warning: Option<String>,
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
    /// What its steps warned of.
    pub(super) warnings: Vec<String>,
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
        let (steps, checks, warnings) = (Arc::from([]), Vec::new(), Vec::new());
        Self { state, why: reason.to_owned(), cases, steps, checks, warnings }
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

    /// What its steps found before holds.
    fn up_to_date(&mut self, steps: &[StepRecord]) {
        for (at, step) in steps.iter().enumerate() {
            let case = self.add(at, CaseStatus::Skipped, Some(UP_TO_DATE.to_owned()));
            case.numbers = numbers(&Measured::of(&step.command, &step.result));
        }
    }

    fn skip_limits(&mut self, reason: &str) {
        for threshold in &self.job.thresholds {
            let name = threshold.quantity.name().to_owned();
            self.push(name, CaseStatus::Skipped, Some(reason.to_owned()), threshold.place.clone());
        }
    }

    /// The last one is an error after all.
    fn spoil_last(&mut self, message: String) {
        if let Some(last) = self.cases.last_mut() {
            (last.status, last.message) = (CaseStatus::Error, Some(message));
        }
    }

    fn judge(&mut self, steps: &[StepRecord], baseline: Option<&[StepRecord]>) {
        let evidence = Evidence { job: self.job, steps, baseline };
        self.cases.extend(self.job.thresholds.iter().map(|threshold| judge(threshold, &evidence)));
    }
}

/// What was measured, as the numbers of a case.
fn numbers(measured: &[Measured]) -> BTreeMap<String, f64> {
    measured.iter().map(|one| (one.name(), one.value.unwrap_or(f64::NAN))).collect()
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
        let _quiet = self.quiet.read().unwrap_or_else(PoisonError::into_inner);
        let names = Names::of(self.plan, job);
        let old = self.records.read(&job.name);
        let makers = self.makers(&names, old.as_ref());
        let mut left = fresh::left(&names, &self.surroundings, old, self.options.force);
        if left.from() == job.steps.len() {
            return Looked::Over(up_to_date(job, left, baseline));
        }
        let replaces = left.from() == 0 && is_in_the_way(&job.bundle);
        let manifest = self.manifest(job);
        if !replaces || makers.iter().any(|maker| maker.made(manifest.as_deref())) {
            left.record.manifest = manifest;
        } else {
            let bundle = job.bundle.display();
            let what = match makers.iter().any(Maker::has_made) {
                true => "its dijiang.json was changed since this batch made it",
                false => "it is there already, and no record of this batch names it",
            };
            let reason = format!(
                "{bundle}: {what} (hint: `mv {bundle} {bundle}.old`, or give the job another output)"
            );
            return Looked::Over(End::refused(job, &reason));
        }
        let convert =
            job.steps.first().filter(|step| left.from() == 0 && step.command == StepCommand::Convert);
        let what = format!("{}: its estimate", job.name);
        let told = convert.and_then(|step| step::estimate(&self.program, step, (&what, 1)));
        let warning = self.other_file(&names, &makers).filter(|_| left.from() == 0);
        let rest = &job.steps[left.from()..];
        let memory = rest.iter().map(|step| memory::of_step(job, step, told)).max().unwrap_or(0);
        let threads = rest.iter().filter_map(step::threads_given).max();
        Looked::Ready(Box::new(Work { left, lock, told, replaces, warning, memory, threads }))
    }

    /// Who made the job's bundle, or has its record.
    fn makers(&self, names: &Names<'_>, old: Option<&Record>) -> Vec<Maker> {
        let makers = self.records.makers(&names.bundle()).iter().cloned();
        makers.chain(old.map(Record::maker)).collect()
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The digest of the manifest of a job's bundle, where there is one.
    fn manifest(&self, job: &Job) -> Option<String> {
        self.surroundings.digester.file(&job.bundle.join(MANIFEST)).ok()
    }

    /// What is said where another file of jobs makes the same. One that was renamed is there no more.
    fn other_file(&self, names: &Names<'_>, makers: &[Maker]) -> Option<String> {
        let file = names.file();
        let is_other = |maker: &&Maker| {
            ![&file, ""].contains(&maker.file.as_str()) && self.plan.root.join(&maker.file).exists()
        };
        let Maker { file: other, .. } = makers.iter().find(is_other)?;
        Some(format!(
            "{other} has a job of this name or output too, and each replaces what the other made (hint: rename one of them, or give it an `out` of its own)"
        ))
    }

    /// Runs the steps that are left, and judges the limits.
    pub(super) fn work(&self, job: &Job, work: Work, threads: usize, baseline: Option<&[StepRecord]>) -> End {
        let from = work.left.from();
        let Work { left, lock: _lock, told, replaces, .. } = work;
        let mut running = Running::new(self, job, left);
        (running.told, running.replaces) = (told, replaces);
        for at in from..job.steps.len() {
            if !running.step(at, threads) {
                return running.broken_at(at).end();
            }
        }
        running.cases.judge(&running.record.steps, baseline);
        running.end()
    }
}

/// A job while its steps run.
#[derive(Debug)]
struct Running<'a> {
    context: &'a Context<'a>,
    names: Names<'a>,
    cases: Cases<'a>,
    record: Record,
    reads: Vec<Found>,
    checks: Vec<Value>,
    warnings: Vec<String>,
    /// Why there is something to do, and the first step that does it.
    reason: Option<String>,
    from: usize,
    told: Option<Estimate>,
    replaces: bool,
}

/// When a step ran, in seconds since the batch began, and with how many threads.
#[derive(Debug, Clone, Copy)]
struct Time {
    started: f64,
    ended: f64,
    threads: usize,
}

impl<'a> Running<'a> {
    fn new(context: &'a Context<'a>, job: &'a Job, left: Left) -> Self {
        let from = left.from();
        let Left { record, reads, reason } = left;
        let mut cases = Cases::new(job);
        cases.up_to_date(&record.steps);
        Self {
            context,
            names: Names::of(context.plan, job),
            cases,
            checks: record.steps.iter().flat_map(|step| checks_of(&step.result)).collect(),
            record,
            reads,
            warnings: Vec::new(),
            reason,
            from,
            told: None,
            replaces: false,
        }
    }

    /// Runs a step, and says whether the next one may.
    fn step(&mut self, at: usize, threads: usize) -> bool {
        let step = &self.names.job.steps[at];
        // Where it is killed before its end is known, what is there then is this batch's.
        self.record.writing = fresh::writes(step.command);
        if let Err(e) = self.context.records.write(&self.record) {
            self.cases.add(at, CaseStatus::Error, Some(unwritten(&e)));
            return false;
        }
        let is_alone = step.command == StepCommand::Bench;
        let quiet = &self.context.quiet;
        let beside = (!is_alone).then(|| quiet.read().unwrap_or_else(PoisonError::into_inner));
        let alone = is_alone.then(|| quiet.write().unwrap_or_else(PoisonError::into_inner));
        let threads = if is_alone { self.context.surroundings.threads } else { threads };
        let what = format!("{}: step {}", self.names.job.name, step.command.name());
        let arguments = self.arguments(step, threads);
        let started = self.context.seconds();
        let mut ran = step::run(&self.context.program, step.command, &arguments, (&what, threads));
        ran.result = self.names.result(step, ran.result);
        let time = Time { started, ended: self.context.seconds(), threads };
        self.add_case(at, &ran, time);
        let is_done = self.note(at, ran, time);
        drop((beside, alone));
        is_done
    }

    fn arguments(&self, step: &Step, threads: usize) -> Vec<String> {
        let mut arguments = step::arguments(step, threads);
        let is_forced = arguments.iter().any(|argument| argument == "--force");
        if self.replaces && step.command == StepCommand::Convert && !is_forced {
            arguments.push("--force".to_owned());
        }
        arguments
    }

    fn add_case(&mut self, at: usize, ran: &Ran, time: Time) {
        let job = self.names.job;
        let message = ran.message.clone().or_else(|| self.reason.clone().filter(|_| at == self.from));
        let warnings = ran.warnings.iter().map(|warning| format!("warning: {warning}"));
        let said: Vec<String> = message.into_iter().chain(warnings).collect();
        let case = self.cases.add(at, ran.status, (!said.is_empty()).then(|| said.join("; ")));
        case.seconds = time.ended - time.started;
        case.numbers = numbers(&Measured::of(job.steps[at].command.name(), &ran.result));
        let ran_by = [
            ("estimate_bytes", memory::of_step(job, &job.steps[at], self.told) as f64),
            ("peak_bytes", ran.peak as f64),
            ("started", time.started),
            ("ended", time.ended),
            ("threads", time.threads as f64),
        ];
        case.numbers.extend(ran_by.map(|(name, number)| (name.to_owned(), number)));
    }

    /// Notes what came of a step in the record, and says whether it is done.
    fn note(&mut self, at: usize, ran: Ran, time: Time) -> bool {
        let job = self.names.job;
        let step = &job.steps[at];
        let result = ran.result;
        self.checks.extend(checks_of(&result));
        self.warnings.extend(ran.warnings);
        let (mut bundle, mut problem) = (None, None);
        if fresh::writes(step.command) {
            (self.record.writing, self.record.manifest) = (false, self.context.manifest(job));
            match whole(self.context.surroundings.digester.files("", &job.bundle)) {
                Ok(digests) => bundle = Some(digests),
                Err(reason) => problem = Some(format!("{}: {}", job.bundle.display(), reason.trim_start())),
            }
        }
        let passed = ran.status == CaseStatus::Passed;
        if passed && problem.is_none() {
            self.record.steps.push(StepRecord {
                command: step.command.name().to_owned(),
                arguments: self.names.arguments(step),
                reads: self.reads.get(at).map(readable).unwrap_or_default(),
                bundle,
                seconds: time.ended - time.started,
                peak: ran.peak,
                result,
            });
        }
        let unwritten = self.context.records.write(&self.record).err().map(|e| unwritten(&e));
        match unwritten.or(problem).filter(|_| passed) {
            Some(problem) => self.cases.spoil_last(problem),
            None => return passed,
        }
        false
    }

    /// It stopped at a step.
    fn broken_at(mut self, at: usize) -> Self {
        let steps = &self.names.job.steps;
        let reason = format!("step {} did not pass", step_name(steps, at));
        self.cases.skip_steps(at + 1..steps.len(), &reason);
        self.cases.skip_limits(&reason);
        self
    }

    fn end(self) -> End {
        End {
            state: JobState::Built,
            why: self.reason.unwrap_or_default(),
            cases: self.cases.cases,
            steps: self.record.steps.into(),
            checks: self.checks,
            warnings: self.warnings,
        }
    }
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
    cases.up_to_date(&left.record.steps);
    cases.judge(&left.record.steps, baseline);
    let steps = left.record.steps;
    let checks = steps.iter().flat_map(|step| checks_of(&step.result)).collect();
    End {
        state: JobState::Fresh,
        why: UP_TO_DATE.to_owned(),
        cases: cases.cases,
        steps: steps.into(),
        checks,
        warnings: Vec::new(),
    }
}

fn unwritten(error: &std::io::Error) -> String {
    format!("its record cannot be written: {error} (hint: see to its directory, then run the same command)")
}

/// Whether something is where a bundle goes.
fn is_in_the_way(bundle: &Path) -> bool {
    let is_empty = std::fs::read_dir(bundle).is_ok_and(|mut entries| entries.next().is_none());
    (bundle.exists() || bundle.is_symlink()) && !is_empty
}
