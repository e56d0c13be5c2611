//! `dijiang batch FILE`

use super::bar::Bar;
use super::{Cli, Failure, Outcome, numbers, show};
use crate::batch::document::Mistakes;
use crate::batch::expand::options::Commands;
use crate::batch::expand::plan;
use crate::batch::expand::select::{Shard, only, shard};
use crate::batch::plan::{Job, Plan, Step};
use crate::batch::run::{RunOptions, run as run_plan};
use crate::batch::schema::json_schema;
use crate::report::outcome::{CaseStatus, Report};
use clap::CommandFactory as _;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Run the jobs of a YAML file: conversions, and what follows them.
///
/// A job makes one bundle by steps, which are commands of this program with their options. Jobs that are up to date are
/// not run again. Outputs are below the directory of FILE. `--schema` describes FILE.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Say what is wrong with FILE, or how many jobs and steps it has, and run nothing
    #[arg(long)]
    check: bool,
    /// Print the jobs and their command lines, and run nothing
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
    /// Print the JSON schema of FILE
    #[arg(long, conflicts_with_all = ["file", "check", "dry_run", "only", "shard"])]
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
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let commands = Commands::of(&Cli::command());
    let Some(file) = args.file.as_ref().filter(|_| !args.schema) else {
        show::line(&format!("{:#}", json_schema(&commands)));
        return Ok(Outcome::Fine);
    };
    let mut plan = plan(file, &commands).map_err(|mistakes| told(&mistakes))?;
    only(&mut plan, &args.only)?;
    if let Some(part) = args.shard {
        shard(&mut plan, part);
    }
    if args.check || args.dry_run {
        return print(args, &plan);
    }
    let options = RunOptions {
        keep_going: args.keep_going,
        memory: args.memory,
        threads: args.threads,
        force: args.force,
    };
    report(args, &run_plan(&plan, &options, &mut Bar::new())?)
}

/// Tells all mistakes but the last, which ends the command.
fn told(mistakes: &Mistakes) -> Failure {
    let mut lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let last = lines.pop().unwrap_or_default();
    lines.iter().for_each(|line| show::error(line));
    last.into()
}

fn print(args: &Args, plan: &Plan) -> Result<Outcome, Failure> {
    let steps: usize = plan.jobs.iter().map(|job| job.steps.len()).sum();
    if args.json {
        let mut object = json!({"ok": true, "jobs": plan.jobs.len(), "steps": steps});
        if args.dry_run {
            let jobs = plan.jobs.iter().map(job_object).collect::<Result<Vec<Value>, Failure>>()?;
            object = json!({"ok": true, "steps": steps, "jobs": jobs});
        }
        show::object(&object);
        return Ok(Outcome::Fine);
    }
    if args.dry_run {
        plan.jobs.iter().try_for_each(print_job)?;
    }
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    show::line(&format!("{}, {}", plural(plan.jobs.len(), "job"), plural(steps, "step")));
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
        "require": limits.collect::<serde_json::Map<_, _>>(),
        "place": job.place,
    }))
}

fn report(args: &Args, report: &Report) -> Result<Outcome, Failure> {
    if args.json {
        show::object(&serde_json::to_value(report)?);
    } else {
        for case in &report.cases {
            let status = match case.status {
                CaseStatus::Passed => "ok",
                CaseStatus::Failed => "FAILED",
                CaseStatus::Error => "ERROR",
                CaseStatus::Skipped => "skipped",
            };
            let message = case.message.as_ref().map_or_else(String::new, |message| format!(": {message}"));
            show::line(&format!("{status:<7}  {}: {}{message}", case.suite, case.name));
        }
    }
    match report.exit_code() {
        0 => Ok(Outcome::Fine),
        1 => Ok(Outcome::CheckFailed),
        _ => Err("a job could not run (hint: its line above names the cause)".into()),
    }
}
