//! `dijiang eval BUNDLE… --perplexity FILE`

use super::{Failure, Outcome, numbers, show};
use crate::train::evaluate::{EvalOptions, Evaluator, Measured};
use dijiang_runtime::Device;
use serde_json::json;
use std::path::PathBuf;

/// Measure bundles on text or on questions.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang eval bundle --perplexity text.txt
  dijiang eval bundle softmax-bundle --task piqa=piqa.jsonl --limit 200 --json")]
pub(super) struct Args {
    /// Directories that `dijiang convert` wrote
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    /// Text, .jsonl, .u16 or .u32, as training reads them
    #[arg(long, required_unless_present = "task")]
    perplexity: Option<PathBuf>,
    /// NAME=FILE: a line per question, {"context": …, "choices": […], "answer": 0}
    #[arg(long, value_parser = task)]
    task: Vec<(String, PathBuf)>,
    /// Tokens per row
    #[arg(long, default_value_t = 512, allow_negative_numbers = true, value_parser = numbers::context())]
    context: u64,
    /// Tokens of the text, at most, in whole rows: --context or more
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count())]
    max_tokens: Option<usize>,
    /// Questions of each task, at most
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count())]
    limit: Option<usize>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads of an operator
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn task(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
    Ok((name.to_owned(), file.into()))
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let options = EvalOptions {
        context: args.context,
        max_tokens: args.max_tokens,
        device: args.device,
        threads: args.threads,
    };
    let mut results = Vec::new();
    for bundle in &args.bundles {
        let mut evaluator = Evaluator::new(bundle, &options)?;
        let mut add = |task: &str, metric: &str, found: &Measured| {
            let Measured { value, n, standard_error, each } = found;
            if !args.json {
                show::line(&format!("{}: {task}: {metric} {value:.4} (n = {n})", bundle.display()));
            }
            results.push(json!({
                "bundle": bundle.display().to_string(), "task": task, "metric": metric, "value": value, "n": n,
                "standard_error": standard_error, "each": each,
            }));
        };
        if let Some(file) = &args.perplexity {
            let found = evaluator.perplexity(file)?;
            add(&file.display().to_string(), "perplexity", &found);
        }
        for (name, file) in &args.task {
            let found = evaluator.accuracy(file, args.limit)?;
            add(name, "accuracy", &found);
        }
    }
    if args.json {
        show::object(&json!({"results": results}));
    }
    Ok(Outcome::Fine)
}
