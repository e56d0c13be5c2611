//! `dijiang adapt SRC -o BUNDLE --data PATH…`

use super::bar::Bar;
use super::hub::HubArgs;
use super::training::Common;
use super::{Failure, Outcome, numbers, show};
use crate::adapt::{AdaptOptions, Adapted, Budget, Figure, adapt, minutes};
use crate::convert::ConvertOptions;
use crate::eval::tasks::{self, Extent};
use crate::recipes;
use crate::train::trainer::{NEW_RATE, WEIGHT_DECAY};
use crate::verify::VerifyOptions;
use dijiang_format::dtype::DType;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Convert a model, train it until it has recovered, prove it and measure it, in one call that can be resumed.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "dijiang adapt <SRC> --output <BUNDLE> --data <DATA>... [OPTIONS]",
    after_help = "Examples:
  dijiang adapt HuggingFaceTB/SmolLM2-135M -o bundle --data text.txt --device cuda:0
  dijiang adapt model -o bundle --data text.txt --minutes 30 --batch 4
  dijiang adapt model -o bundle --data train.u16 --valid valid.u16 --task piqa=valid.jsonl --limit 200"
)]
pub(super) struct Args {
    /// A model, as `dijiang convert` takes it
    source: PathBuf,
    /// The bundle to make. A call that ended early goes on in it
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Tokens to train on, of which calibration has some three in eight
    #[arg(long, default_value_t = 3_400_000, allow_negative_numbers = true, value_parser = numbers::count())]
    tokens: usize,
    /// Time to train for, about, in place of --tokens
    #[arg(long, conflicts_with = "tokens", allow_negative_numbers = true, value_parser = numbers::minutes)]
    minutes: Option<f64>,
    /// A recipe's name or a YAML file; adaptive where none is given
    #[arg(long)]
    recipe: Option<String>,
    /// f32, f16 or bf16; the source's where none is given, and f16 for bf16
    #[arg(long, value_parser = numbers::float)]
    dtype: Option<DType>,
    /// NAME=PATH: questions to ask before and after, as for `eval`
    #[arg(long, value_name = "NAME=PATH", value_parser = task)]
    task: Vec<(String, PathBuf)>,
    /// Questions of each task, at most
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count())]
    limit: Option<usize>,
    /// Leave out the proof in the end
    #[arg(long)]
    no_verify: bool,
    /// Begin anew, in the place of a bundle that is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubArgs,
}

fn task(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("expected NAME=PATH".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let trainer = args.common.trainer(WEIGHT_DECAY, NEW_RATE);
    numbers::take_threads(trainer.threads);
    let (seed, threads) = (args.common.seed, trainer.threads);
    let extent = Extent { limit: args.limit.unwrap_or(usize::MAX), shots: 0 };
    let read = |(name, path): &(String, PathBuf)| tasks::read(name, path, extent);
    let tasks = args.task.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let recipe = recipes::load(args.recipe.as_deref().unwrap_or(recipes::DEFAULT))?;
    let options = AdaptOptions {
        convert: ConvertOptions {
            is_default_recipe: args.recipe.is_none(),
            dtype: args.dtype,
            seed,
            force: args.force,
            ..ConvertOptions::of(recipe)
        },
        sources: args.common.sources(),
        trainer,
        budget: match args.minutes {
            Some(minutes) => Budget::Time(Duration::try_from_secs_f64(minutes * 60.0)?),
            None => Budget::Tokens(args.tokens),
        },
        seed,
        verify: (!args.no_verify).then(|| VerifyOptions { seed, threads, ..VerifyOptions::default() }),
        tasks: &tasks,
    };
    let source = args.hub.located(&args.source)?;
    let adapted = adapt(&source, &args.output, &options, &mut Bar::new())?;
    match args.json {
        true => show::object(&object(args, &adapted)?),
        false => print(args, &adapted),
    }
    Ok(Outcome::of(adapted.is_ok()))
}

fn object(args: &Args, adapted: &Adapted) -> Result<Value, Failure> {
    let mut object = serde_json::to_value(&adapted.record)?;
    object["bundle"] = json!(args.output);
    object["checks"] = adapted.verification.as_ref().map_or(Value::Null, show::checks);
    Ok(object)
}

fn print(args: &Args, adapted: &Adapted) {
    let Adapted { record, verification } = adapted;
    let bundle = args.output.display();
    if let Some(found) = verification.as_ref().filter(|found| !found.ok) {
        show::verification(found);
    }
    show::line("                    perplexity    tokens  time");
    let row = |name: &str, perplexity: f64, rest: &str| {
        show::line(&format!("  {name:<16} {perplexity:>11.2}  {rest}"));
    };
    if let Some(perplexity) = record.softmax_perplexity {
        row("as it came", perplexity, "");
    }
    let parts = [("calibrated", &record.calibrated), ("fine-tuned", &record.finetuned)];
    let mut parts = parts.into_iter().filter_map(|(name, part)| Some((name, part.as_ref()?))).peekable();
    if let Some((_, first)) = parts.peek() {
        row("converted", first.perplexity_before, "");
    }
    for (name, part) in parts {
        let time = minutes(Duration::try_from_secs_f64(part.seconds).unwrap_or_default());
        row(name, part.perplexity, &format!("{:>7.2}M  {time}", part.tokens as f64 / 1e6));
    }
    for after in record.tasks.iter().flatten() {
        let same = |one: &&Figure| (&one.task, &one.metric) == (&after.task, &after.metric);
        let before = record.softmax_tasks.iter().flatten().find(same);
        let before = before.map_or(String::new(), |before| format!(", {} as it came", told(before)));
        show::line(&format!("  {} {}: {}{before}", after.task, after.metric, told(after)));
    }
    show::line(&match record.verified {
        Some(true) => format!(
            "{bundle}: adapted, and every check holds (next: `dijiang generate {bundle} --prompt TEXT`)"
        ),
        Some(false) => format!("{bundle}: adapted, and a check FAILED"),
        None => format!("{bundle}: adapted, not verified (next: `dijiang verify {bundle}`)"),
    });
}

fn told(figure: &Figure) -> String {
    match figure.standard_error {
        Some(error) => format!("{:.3} ± {error:.3}", figure.value),
        None => format!("{:.3}", figure.value),
    }
}
