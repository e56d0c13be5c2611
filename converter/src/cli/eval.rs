//! `dijiang eval BUNDLE… --perplexity FILE`

use super::bar::Bar;
use super::os::FileError;
use super::{Failure, Outcome, numbers, show};
use crate::bundle::replace::replace_file;
use crate::eval::answers::{Answered, Likelihood};
use crate::eval::statistics::Measured;
use crate::eval::table::{Key, Table};
use crate::eval::tasks::{self, Asked, Extent};
use crate::eval::{EvalOptions, Evaluator, SYNTHETIC, Synthetic};
use crate::report::progress::Progress as _;
use clap::ArgGroup;
use dijiang_format::manifest::Manifest;
use dijiang_runtime::Device;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Measure bundles on text, on questions and on random tokens.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang eval bundle --perplexity text.txt --context 512,2048
  dijiang eval bundle --perplexity text.txt --branches
  dijiang eval bundle softmax-bundle --task piqa=valid.jsonl --task arc_easy=ARC-Easy-Test.jsonl
  dijiang eval bundle --task mmlu=data --shots 5 --limit 20 --json
  dijiang eval bundle --task copy --task recall --context 256,1024
  dijiang eval bundle --task mine=questions.jsonl --samples answers.jsonl")]
#[command(group(ArgGroup::new("measures").required(true).multiple(true).args(["perplexity", "task"])))]
pub(super) struct Args {
    /// Directories that `dijiang convert` wrote
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    /// Text, .jsonl, .u16 or .u32, as training reads them
    #[arg(long)]
    perplexity: Option<PathBuf>,
    /// NAME=PATH: piqa, winogrande, wsc, wsc273, arc_easy, arc_challenge, logiqa, siqa, boolq, hellaswag, mmlu, copa, race or
    /// lambada by their publishers' files; with any other name a line per question, {"context": …, "choices": […],
    /// "answer": 0}. copy and recall are without a file
    #[arg(long, value_parser = task)]
    task: Vec<(String, Option<PathBuf>)>,
    /// Tokens per row: 512 of text, and 256 to 8,192 of copy and recall. Questions are cut to the longest, or else to what
    /// the model takes
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, value_parser = numbers::context())]
    context: Vec<u64>,
    /// Measure the text once more without each branch of the attentions too: what is read of linear sums, of windows, and by
    /// layers that stay softmax
    #[arg(long, requires = "perplexity")]
    branches: bool,
    /// Tokens of the text, at most, in whole rows: --context or more
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count())]
    max_tokens: Option<usize>,
    /// Questions of each task, or of each subject of mmlu, and rows of each length, at most
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count())]
    limit: Option<usize>,
    /// Solved questions before each of mmlu
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = numbers::shots())]
    shots: usize,
    /// Write a line for each question: what was asked, the log-likelihoods, the choice and the answer
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Feed the whole text of every choice, as a comparison: what choices share is otherwise fed once
    #[arg(long)]
    no_branching: bool,
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

fn task(text: &str) -> Result<(String, Option<PathBuf>), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), Some(path.into())))
        }
        None if synthetic(text).is_some() => Ok((text.to_owned(), None)),
        _ => Err("expected NAME=PATH, copy or recall".to_owned()),
    }
}

fn synthetic(name: &str) -> Option<Synthetic> {
    SYNTHETIC.into_iter().find(|what| what.name() == name)
}

/// What is to be measured beside texts.
enum Task {
    Questions(Asked),
    Synthetic(Synthetic),
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let options = EvalOptions {
        contexts: args.context.clone(),
        max_tokens: args.max_tokens,
        device: args.device,
        threads: args.threads,
        no_branching: args.no_branching,
    };
    let limit = args.limit.unwrap_or(usize::MAX);
    let extent = Extent { limit, shots: args.shots };
    // A file that is wrong is told before a bundle is opened.
    let tasks = args.task.iter().map(|(name, path)| match (path, synthetic(name)) {
        (None, Some(what)) => Ok(Task::Synthetic(what)),
        (path, _) => {
            Ok(Task::Questions(tasks::read(name, path.as_deref().unwrap_or(Path::new("")), extent)?))
        }
    });
    let tasks = tasks.collect::<Result<Vec<_>, Failure>>()?;
    check_branches(args)?;
    let mut told = Told::new(&args.bundles);
    let mut bar = Bar::new();
    for (at, bundle) in args.bundles.iter().enumerate() {
        told.bundle = at;
        bar.stage(&format!("opening {}", bundle.display()));
        let mut evaluator = Evaluator::new(bundle, &options)?;
        if let Some(file) = &args.perplexity {
            for context in options.contexts() {
                let found = evaluator.perplexity(file, context, &mut bar)?;
                let of = Of { task: &file.display().to_string(), version: None, context: Some(context) };
                told.add(&of, "perplexity", &found);
                if args.branches {
                    for (branch, found) in evaluator.branches(file, context, &mut bar)? {
                        told.add(&of, &format!("perplexity without {}", branch.name()), &found);
                    }
                }
            }
        }
        for task in &tasks {
            match task {
                Task::Questions(asked) => {
                    let likelihoods = evaluator.ask(&asked.name, &asked.questions, &mut bar)?;
                    told.answers(asked, &likelihoods);
                }
                Task::Synthetic(what) => {
                    for length in evaluator.lengths() {
                        let of = Of { task: what.name(), version: None, context: Some(length) };
                        for found in evaluator.synthetic(*what, (length, limit), &mut bar)? {
                            told.add(&of, found.metric, &found.measured);
                        }
                    }
                }
            }
        }
    }
    bar.done();
    if let Some(path) = &args.samples {
        replace_file(path, told.samples.as_bytes()).map_err(FileError::of(path))?;
    }
    match args.json {
        true => show::object(&json!({"results": told.results})),
        false => told.table.lines().iter().for_each(|line| show::line(line)),
    }
    Ok(Outcome::Fine)
}

/// Refuses bundles without branches before any is measured.
fn check_branches(args: &Args) -> Result<(), Failure> {
    for bundle in args.bundles.iter().filter(|_| args.branches) {
        if Manifest::read(bundle)?.source.own_attention {
            return Err(format!(
                "{}: --branches takes the softmax model in a bundle apart, and the attention of this one was linear in its source already (hint: leave --branches out)",
                bundle.display()
            )
            .into());
        }
    }
    Ok(())
}

/// What a figure is of.
struct Of<'a> {
    task: &'a str,
    version: Option<u32>,
    context: Option<u64>,
}

/// All that was measured.
struct Told {
    names: Vec<String>,
    /// The one that is measured now.
    bundle: usize,
    table: Table,
    results: Vec<Value>,
    samples: String,
}

impl Told {
    fn new(bundles: &[PathBuf]) -> Self {
        let names: Vec<String> = bundles.iter().map(|bundle| bundle.display().to_string()).collect();
        let table = Table::new(names.clone());
        Self { names, bundle: 0, table, results: Vec::new(), samples: String::new() }
    }

    fn add(&mut self, of: &Of<'_>, metric: &str, found: &Measured) {
        let Of { task, version, context } = *of;
        let key = Key { task: task.to_owned(), metric: metric.to_owned(), context };
        self.table.add(self.bundle, &key, found);
        let Measured { value, n, standard_error, each } = found;
        self.results.push(json!({
            "bundle": self.names[self.bundle], "task": task, "version": version, "metric": metric, "context": context,
            "value": value, "n": n, "standard_error": standard_error, "each": each,
        }));
    }

    fn answers(&mut self, asked: &Asked, likelihoods: &[Vec<Likelihood>]) {
        let Asked { name, version, metrics, questions } = asked;
        let answers: Vec<Answered<'_>> = questions
            .iter()
            .zip(likelihoods)
            .map(|(question, choices)| Answered { question, choices })
            .collect();
        let of = Of { task: name, version: *version, context: None };
        for metric in *metrics {
            self.add(&of, metric.name(), &metric.of(&answers));
        }
        for (number, answered) in answers.iter().enumerate() {
            let texts = answered.question.asked.iter().map(|asked| [&asked.context, &asked.continuation]);
            let sample = json!({
                "bundle": self.names[self.bundle], "task": name, "question": number,
                "log_likelihoods": answered.choices.iter().map(|choice| choice.log).collect::<Vec<_>>(),
                "greedy": answered.choices.iter().map(|choice| choice.is_greedy).collect::<Vec<_>>(),
                "choice": answered.likeliest(), "answer": answered.question.answer,
                "asked": texts.collect::<Vec<_>>(),
            });
            self.samples.push_str(&sample.to_string());
            self.samples.push('\n');
        }
    }
}
