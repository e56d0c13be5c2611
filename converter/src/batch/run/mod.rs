//! Runs a plan: jobs beside each other, as far as memory and threads allow; every step as a child process of this
//! program, so that a crash of one job leaves the others alone; what is up to date is not done again.

pub mod children;
mod digests;
mod engine;
mod fresh;
mod job;
mod machine;
mod measured;
mod memory;
mod names;
mod outcome;
mod record;
mod schedule;
mod step;
mod threshold;

use crate::batch::plan::{Job, Plan};
use crate::bundle::room;
use crate::report::outcome::{Case, CaseStatus, Report};
use crate::report::progress::Progress;
use digests::Digester;
use engine::Engine;
use fresh::Surroundings;
use job::Context;
pub use measured::Measured;
use names::Names;
pub use outcome::{JobOutcome, JobState, Limit};
use record::{DIRECTORY, Records};
use schedule::{Budget, Schedule};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::Instant;

/// How to run a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Go on with the other jobs after one failed.
    pub keep_going: bool,
    /// Bytes that the jobs that run at once may take; most of what is free where not given.
    pub memory: Option<u64>,
    /// Threads that they may take; all cores where not given.
    pub threads: Option<usize>,
    /// Run what is up to date too.
    pub force: bool,
    /// What runs the steps; this program where not given.
    pub program: Option<PathBuf>,
}

/// A plan cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error(
        "{}: the records of the batch cannot be kept there: {source} (hint: run it where its file's directory can be written to)",
        path.display()
    )]
    Records { path: PathBuf, source: std::io::Error },
    #[error("this program cannot be found: {source} (hint: install it again)")]
    Program { source: std::io::Error },
}

/// What came of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    /// In the order of the plan.
    pub jobs: Vec<JobOutcome>,
    pub report: Report,
}

/// Of the memory that is free, the part that a batch takes where nothing is said.
const MOST_OF_FREE: f64 = 0.8;

/// Runs the jobs of a plan. What failed is in the report.
pub fn run(plan: &Plan, options: &RunOptions, progress: &mut dyn Progress) -> Result<Ran, BatchError> {
    let start = Instant::now();
    let unkept = |source| BatchError::Records { path: plan.root.join(DIRECTORY), source };
    let program = program(options)?;
    let budget = budget(options);
    let context = Context {
        plan,
        options,
        records: Records::open(plan).map_err(unkept)?,
        surroundings: surroundings(plan, &program, budget),
        program,
        quiet: RwLock::new(()),
        start,
    };
    let ends = Schedule::new(&context, budget).run(progress);
    if let Err(e) = context.surroundings.digester.save() {
        tracing::debug!("the digests of files cannot be kept: {e}");
    }
    let jobs = plan.jobs.iter().zip(&ends).map(|(job, end)| JobOutcome::of(job, end)).collect();
    let cases = ends.into_iter().flat_map(|end| end.cases).collect();
    Ok(Ran { jobs, report: report(start.elapsed().as_secs_f64(), cases) })
}

fn program(options: &RunOptions) -> Result<PathBuf, BatchError> {
    match &options.program {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().map_err(|source| BatchError::Program { source }),
    }
}

fn surroundings(plan: &Plan, program: &Path, budget: Budget) -> Surroundings {
    let digester = Digester::open(&plan.root);
    // One that may be run and not read is told apart by its version.
    let program = digester.file(program).unwrap_or_default();
    Surroundings { digester, engine: Engine::default(), program, threads: budget.threads }
}

/// What each step of each job reads, but for bundles of baselines: digests by names, or why there is none.
pub fn reads(plan: &Plan, options: &RunOptions) -> Result<Vec<Vec<BTreeMap<String, String>>>, BatchError> {
    let surroundings = surroundings(plan, &program(options)?, budget(options));
    let of_job = |job: &Job| {
        let names = Names { baseline: None, ..Names::of(plan, job) };
        let contents = job.steps.iter().map(|step| fresh::contents(&names, step, &surroundings));
        let told = |found: digests::Found| {
            found.into_iter().map(|(name, digest)| (name, digest.unwrap_or_else(|reason| reason))).collect()
        };
        contents.map(told).collect()
    };
    Ok(plan.jobs.iter().map(of_job).collect())
}

/// What is reported of a batch.
pub fn report(seconds: f64, cases: Vec<Case>) -> Report {
    Report { command: "batch".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), seconds, cases }
}

fn budget(options: &RunOptions) -> Budget {
    let most = || room::free_memory().map_or(u64::MAX, |free| (free as f64 * MOST_OF_FREE) as u64);
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Budget {
        memory: options.memory.unwrap_or_else(most),
        threads: options.threads.unwrap_or_else(cores).max(1),
    }
}

/// Whether a case leaves the exit code at 0.
fn is_good(status: CaseStatus) -> bool {
    matches!(status, CaseStatus::Passed | CaseStatus::Skipped)
}
