//! `dijiang batch FILE`

use super::bar::Bar;
use super::hub::HubArgs;
use super::report_args::ReportArgs;
use super::{Cli, Failure, Outcome, numbers, show};
use crate::batch::document::{Mistake, Mistakes};
use crate::batch::expand::options::Commands;
use crate::batch::expand::plan;
use crate::batch::expand::select::{Shard, only, shard};
use crate::batch::plan::{Job, Plan, Quantity, Step};
use crate::batch::run::{JobOutcome, JobState, Ran, RunOptions, reads, report, run as run_plan};
use crate::batch::schema::json_schema;
use crate::hub::HubModel;
use crate::report::message::one_line;
use crate::report::outcome::{Case, CaseStatus};
use clap::CommandFactory as _;
use dijiang_format::words::counted;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run the jobs of a YAML file: conversions, and what follows them.
///
/// Models of the Hugging Face hub are downloaded before the first job, unless the cache has them. A job makes one bundle
/// by steps, which are commands of this program with their options. Jobs that are up to date are not run again. Outputs
/// are below the directory of FILE. `--schema` describes FILE.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang batch jobs.yaml --check
  dijiang batch jobs.yaml --dry-run --only 'llama-*'
  dijiang batch jobs.yaml --keep-going --memory 16GB --report junit=report.xml
  dijiang batch jobs.yaml --shard 2/5
  dijiang batch --schema > jobs.schema.json")]
pub(super) struct Args {
    /// The file of jobs
    #[arg(id = "jobs", value_name = "FILE", required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Say what is wrong with FILE, or how many jobs and steps it has, and run nothing
    #[arg(long)]
    check: bool,
    /// Print the jobs and their command lines, and run nothing
    #[arg(long, conflicts_with_all = ["check", "report"])]
    dry_run: bool,
    /// With --dry-run --json: add the digests of all that the jobs read
    #[arg(long, requires_all = ["dry_run", "json"])]
    digests: bool,
    /// Print the JSON schema of FILE
    #[arg(long, conflicts_with_all = ["jobs", "check", "dry_run", "only", "shard", "report"])]
    schema: bool,
    /// Only jobs of this name, and their baselines; `*`, `?` and `[…]` stand for letters. May be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only the I-th of N parts of the jobs, from 1. A baseline is in the part of the jobs that need it
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Go on with other jobs after one failed
    #[arg(long)]
    keep_going: bool,
    /// Memory that jobs beside each other may take, such as 8GB; most of what is free where not given
    #[arg(long, value_parser = numbers::bytes, allow_negative_numbers = true)]
    memory: Option<u64>,
    /// Threads that they may take; all cores where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Run what is up to date too
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    hub: HubArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let commands = Commands::of(&Cli::command());
    let Some(file) = args.file.as_ref().filter(|_| !args.schema) else {
        show::line(&format!("{:#}", json_schema(&commands)));
        return Ok(Outcome::Fine);
    };
    args.report.check(args.json)?;
    let start = Instant::now();
    let mut cases = Vec::new();
    let outcome = of_file(args, file, &commands, &mut cases);
    if let (Err(failure), true) = (&outcome, cases.is_empty()) {
        cases.push(case(file, "batch", CaseStatus::Error, &failure.to_string()));
    }
    let written = args.report.write(&report(start.elapsed().as_secs_f64(), cases));
    match (outcome, written) {
        (Err(failure), Err(second)) => {
            show::error(&second.to_string());
            Err(failure)
        }
        (outcome, written) => written.and(outcome),
    }
}

/// Adds what came of it to the cases.
fn of_file(args: &Args, file: &Path, commands: &Commands, cases: &mut Vec<Case>) -> Result<Outcome, Failure> {
    let runs = !args.check && !args.dry_run;
    let mut on_hub = |model: &HubModel| match runs {
        true => args.hub.located_model(model).map(Some).map_err(|error| error.to_string()),
        false => Ok(HubArgs::in_the_cache(model)),
    };
    let mut plan = plan(file, commands, &mut on_hub).map_err(|mistakes| {
        cases.extend(mistakes.iter().map(|mistake| of_mistake(file, mistake)));
        if args.check && args.json {
            let mistakes: Vec<Value> = mistakes.iter().map(mistake_object).collect();
            show::object(&json!({"ok": false, "mistakes": mistakes}));
        }
        told(&mistakes)
    })?;
    only(&mut plan, &args.only)?;
    if let Some(part) = args.shard {
        shard(&mut plan, part);
    }
    if !runs {
        cases.push(case(file, "check", CaseStatus::Passed, &counts(&plan)));
        return print(args, &plan);
    }
    let options = run_options(args);
    let Ran { jobs, report } = run_plan(&plan, &options, &mut Bar::new())?;
    let code = report.exit_code();
    cases.extend(report.cases);
    match args.json {
        _ if args.report.on_stdout() => (),
        true => show::object(&json!({"jobs": jobs, "ok": code == 0, "seconds": report.seconds})),
        false => print_jobs(&jobs, report.seconds),
    }
    match code {
        0 => Ok(Outcome::Fine),
        1 => Ok(Outcome::CheckFailed),
        _ => Err(unable(cases).into()),
    }
}

fn run_options(args: &Args) -> RunOptions {
    RunOptions {
        keep_going: args.keep_going,
        memory: args.memory,
        threads: args.threads,
        force: args.force,
        program: None,
    }
}

/// Which jobs could not run, and of which a limit could not be measured: the causes were told as they came.
fn unable(cases: &[Case]) -> String {
    let broken = || cases.iter().filter(|case| case.status == CaseStatus::Error);
    let suites = |of_limits: bool| -> BTreeSet<&str> {
        let cases = broken().filter(move |case| Quantity::named(&case.name).is_some() == of_limits);
        cases.map(|case| case.suite.as_str()).collect()
    };
    let (unrun, mut unmeasured) = (suites(false), suites(true));
    unmeasured.retain(|job| !unrun.contains(job));
    let parts = [(unrun, "could not run"), (unmeasured, "could not be measured")];
    let told: Vec<String> =
        parts.iter().filter(|(jobs, _)| !jobs.is_empty()).map(|(jobs, what)| of_jobs(jobs, what)).collect();
    format!(
        "{} (hint: the line of each names its cause; the same command goes on with them)",
        told.join("; ")
    )
}

fn of_jobs(jobs: &BTreeSet<&str>, what: &str) -> String {
    let names: Vec<&str> = jobs.iter().copied().take(MOST_NAMES).collect();
    let more = match jobs.len().saturating_sub(MOST_NAMES) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("{} {what}: {}{more}", counted(jobs.len(), "job"), names.join(", "))
}

/// Names in one line.
const MOST_NAMES: usize = 5;

fn case(file: &Path, name: &str, status: CaseStatus, message: &str) -> Case {
    Case {
        suite: file.display().to_string(),
        name: name.to_owned(),
        status,
        seconds: 0.0,
        message: Some(one_line(message)),
        place: None,
        numbers: BTreeMap::new(),
    }
}

fn of_mistake(file: &Path, mistake: &Mistake) -> Case {
    let place = mistake.line();
    let name = place.map_or_else(|| "batch".to_owned(), |place| one_line(&place.to_string()));
    Case { place: place.cloned(), ..case(file, &name, CaseStatus::Error, &mistake.told()) }
}

fn mistake_object(mistake: &Mistake) -> Value {
    let place = mistake.line();
    json!({
        "file": mistake.place.file,
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "message": mistake.told(),
    })
}

/// Tells all mistakes but the last, which ends the command.
fn told(mistakes: &Mistakes) -> Failure {
    let mut lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let last = lines.pop().unwrap_or_default();
    lines.iter().for_each(|line| show::error(line));
    last.into()
}

fn counts(plan: &Plan) -> String {
    let steps: usize = plan.jobs.iter().map(|job| job.steps.len()).sum();
    format!("{}, {}", counted(plan.jobs.len(), "job"), counted(steps, "step"))
}

fn print(args: &Args, plan: &Plan) -> Result<Outcome, Failure> {
    if args.report.on_stdout() {
        return Ok(Outcome::Fine);
    }
    let steps: usize = plan.jobs.iter().map(|job| job.steps.len()).sum();
    if args.json {
        let of_job = |job: &Job| match args.dry_run {
            true => job_object(job),
            false => Ok(json!({"name": job.name})),
        };
        let mut jobs = plan.jobs.iter().map(of_job).collect::<Result<Vec<Value>, Failure>>()?;
        if args.digests {
            let digests = reads(plan, &run_options(args))?;
            jobs.iter_mut().zip(digests).for_each(|(job, digests)| job["digests"] = json!(digests));
        }
        show::object(&json!({"ok": true, "steps": steps, "jobs": jobs}));
        return Ok(Outcome::Fine);
    }
    if args.dry_run {
        plan.jobs.iter().try_for_each(print_job)?;
    }
    show::line(&counts(plan));
    Ok(Outcome::Fine)
}

/// A step as it is typed.
fn command_line(step: &Step) -> Result<String, Failure> {
    let words = ["dijiang", step.command.name()].into_iter().chain(step.arguments.iter().map(String::as_str));
    Ok(shlex::try_join(words)?)
}

fn print_job(job: &Job) -> Result<(), Failure> {
    let baseline = job.baseline.as_ref().map_or_else(String::new, |name| format!(", after {name}"));
    show::line(&format!("{}{baseline}", job.name));
    for step in &job.steps {
        show::line(&format!("  {}", command_line(step)?));
    }
    for threshold in &job.thresholds {
        show::line(&format!("  require {} {}", threshold.quantity.name(), threshold.limit));
    }
    Ok(())
}

fn job_object(job: &Job) -> Result<Value, Failure> {
    let steps = job.steps.iter().map(command_line).collect::<Result<Vec<_>, _>>()?;
    let reads: BTreeSet<&PathBuf> = job.steps.iter().flat_map(|step| &step.reads).collect();
    let limits = job.thresholds.iter().map(|limit| (limit.quantity.name().to_owned(), json!(limit.limit)));
    Ok(json!({
        "name": job.name,
        "source": job.source,
        "bundle": job.bundle,
        "recipe": job.recipe,
        "target": job.target.name(),
        "dtype": job.dtype.map(dijiang_format::dtype::DType::name),
        "baseline": job.baseline,
        "steps": steps,
        "reads": reads,
        "require": limits.collect::<serde_json::Map<_, _>>(),
        "place": job.place,
    }))
}

fn print_jobs(jobs: &[JobOutcome], seconds: f64) {
    for job in jobs {
        let state = match job.state {
            JobState::Built => "built",
            JobState::Fresh => "fresh",
            JobState::Failed => "FAILED",
            JobState::Skipped => "skipped",
        };
        show::line(&format!("{state:<7}  {}: {}", job.name, job.why));
        for measured in &job.measured {
            show::line(&format!("         {measured}"));
        }
        for limit in &job.thresholds {
            let verdict = match limit.ok {
                Some(true) => "ok",
                Some(false) => "FAILED",
                // The line above says why the job did not get that far.
                None => continue,
            };
            show::line(&format!("         {}: {verdict}: {}", limit.name, limit.reason));
        }
    }
    let count = |state: JobState| jobs.iter().filter(|job| job.state == state).count();
    show::line(&format!(
        "{}: {} built, {} fresh, {} failed, {} skipped, in {seconds:.1} s",
        counted(jobs.len(), "job"),
        count(JobState::Built),
        count(JobState::Fresh),
        count(JobState::Failed),
        count(JobState::Skipped)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_run_is_told_apart_from_what_could_not_be_measured() {
        let case = |suite: &str, name: &str, status| Case {
            suite: suite.to_owned(),
            ..case(Path::new("jobs.yaml"), name, status, "no")
        };
        let [unrun, unmeasured] = [("a", "convert"), ("b", "check-error")]
            .map(|(suite, name)| case(suite, name, CaseStatus::Error));
        let failed = case("c", "speed-ratio", CaseStatus::Failed);
        let told = unable(&[unmeasured.clone(), failed]);
        assert!(told.starts_with("1 job could not be measured: b (hint: "), "{told}");
        let told = unable(&[unmeasured, unrun.clone(), case("a", "check-error", CaseStatus::Error)]);
        assert!(told.starts_with("1 job could not run: a; 1 job could not be measured: b (hint: "), "{told}");
        assert!(unable(&[unrun]).starts_with("1 job could not run: a (hint: "));
    }
}
