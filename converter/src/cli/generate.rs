//! `dijiang generate BUNDLE --prompt P`

use super::{Failure, Outcome, numbers, show};
use crate::serving::open;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, Model};
use dijiang_runtime::{
    Device, Engine, GenerateOptions, Generated, Serving, ServingOptions, Tokenizer, generate,
};
use serde_json::json;
use std::path::PathBuf;

/// Continue a text, or several side by side.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang generate bundle --prompt 'Once upon a time' -n 100
  dijiang generate bundle --prompt-file prompts.txt --lines --json
  dijiang generate bundle --prompt 'A story.' --save-state story.safetensors
  dijiang generate bundle --load-state story.safetensors --prompt ' It went on.'")]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    /// The text to continue; with --load-state, what comes behind the text before. Given several times, each is
    /// continued as if it were alone
    #[arg(long, required_unless_present_any = ["prompt_file", "load_state"])]
    prompt: Vec<String>,
    /// A file with the text to continue
    #[arg(long, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Every line of the file that is not empty is a text of its own
    #[arg(long, requires = "prompt_file", conflicts_with = "prompt")]
    lines: bool,
    /// New tokens at most
    #[arg(short = 'n', long, default_value_t = 64, allow_negative_numbers = true, value_parser = numbers::steps())]
    tokens: usize,
    /// 0 takes the likeliest token each time
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_parser = numbers::temperature)]
    temperature: f32,
    /// Probability mass to choose from
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_parser = numbers::share)]
    top_p: f32,
    /// Seed of the choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// ort or tract
    #[arg(long, default_value = "ort")]
    runtime: Runs,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// On a GPU: launch the kernels one by one instead of replaying recorded runs
    #[arg(long)]
    no_cuda_graph: bool,
    /// Threads inside one operator
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Go on from a state that --save-state wrote
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Write what the model keeps of the text, to go on from another time
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Prompt tokens fed at a time, at most
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::tokens_at_once())]
    segment: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Runs {
    Ort,
    Tract,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let manifest = Manifest::read(&args.bundle)?;
    let tokenizer = Tokenizer::load(&args.bundle.join(files::TOKENIZER))?;
    let texts = texts(args)?;
    let encode = |text: &String| match args.load_state {
        Some(_) => tokenizer.encode_more(text),
        None => tokenizer.encode(text),
    };
    let prompts = texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let check =
        |seen| prompts.iter().try_for_each(|ids| check_prompt(ids, seen, args.tokens, &manifest.model));
    check(0)?;
    let mut serving = open(&args.bundle, &serving(args))?;
    if let Some(state) = &args.load_state {
        serving.load_state(state)?;
        check(serving.seen())?;
    }
    let options = GenerateOptions {
        prompts,
        resume: args.load_state.is_some(),
        feed_last: args.save_state.is_some(),
        max_new_tokens: args.tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: manifest.model.eos.iter().map(|id| *id as i64).collect(),
    };
    let streams = texts.len() == 1 && !args.json;
    if streams {
        show::stream(&texts[0]);
    }
    let mut on_text = |_: usize, piece: &str| {
        if streams {
            show::stream(piece);
        }
    };
    let found = generate(&mut serving, &tokenizer, &options, &mut on_text)?;
    save(args, &serving)?;
    match (args.json, found.as_slice()) {
        (true, [one]) => show::object(&serde_json::to_value(one)?),
        (true, several) => show::object(&json!({"results": several})),
        (false, [_]) => show::line(""),
        (false, several) => print_numbered(&texts, several),
    }
    if !args.json {
        print_rates(&found);
    }
    Ok(Outcome::Fine)
}

/// The texts to continue, at least one.
fn texts(args: &Args) -> Result<Vec<String>, Failure> {
    let texts = match &args.prompt_file {
        None if args.prompt.is_empty() => vec![String::new()],
        None => args.prompt.clone(),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
            match args.lines {
                false => vec![text],
                true => text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect(),
            }
        }
    };
    let option = match (texts.len(), &args.load_state, &args.save_state) {
        (0, ..) => return Err("--lines: every line of the file is empty".into()),
        (1, ..) | (_, None, None) => return Ok(texts),
        (_, Some(_), _) => "--load-state",
        (_, None, Some(_)) => "--save-state",
    };
    Err(format!("{option}: a state is that of one text, and {} were given", texts.len()).into())
}

/// Each text under its number.
fn print_numbered(prompts: &[String], found: &[Generated]) {
    for (number, (prompt, one)) in (1..).zip(prompts.iter().zip(found)) {
        show::line(&format!("[{number}]\n{prompt}{}", one.text));
    }
}

fn print_rates(found: &[Generated]) {
    let sum = |of: fn(&Generated) -> usize| found.iter().map(of).sum::<usize>();
    let longest = |of: fn(&Generated) -> f64| found.iter().map(of).fold(0.0, f64::max);
    let (tokens, seconds) = (sum(|one| one.tokens.len()), longest(|one| one.decode_seconds));
    show::note(&format!(
        "prompt: {} tokens in {:.2} s; text: {tokens} tokens, {:.1} per second; state: {} bytes",
        sum(|one| one.prompt_tokens),
        longest(|one| one.prefill_seconds),
        tokens as f64 / seconds.max(1e-9),
        sum(|one| one.state_bytes)
    ));
}

/// Refuses what the model has no row for in its tables, which a runtime would only find while it runs.
fn check_prompt(ids: &[i64], seen: usize, new_tokens: usize, model: &Model) -> Result<(), Failure> {
    // An ONNX source may not say how many tokens it knows.
    let outside = |id: &&i64| model.vocab > 0 && !(0..model.vocab as i64).contains(*id);
    if let Some(id) = ids.iter().find(outside) {
        return Err(format!(
            "prompt: the tokenizer gives token {id}, but the model knows {} (hint: is {} the model's own?)",
            model.vocab,
            files::TOKENIZER
        )
        .into());
    }
    let Some(positions) = model.positions.map(|n| n as usize) else { return Ok(()) };
    let held = seen + ids.len();
    if held.saturating_add(new_tokens) > positions {
        let hint = match positions.saturating_sub(held) {
            0 => "shorten it".to_owned(),
            left => format!("-n {left} at most"),
        };
        return Err(format!(
            "prompt: {held} tokens and {new_tokens} new ones, but the model has {positions} positions (hint: {hint})"
        )
        .into());
    }
    Ok(())
}

fn serving(args: &Args) -> ServingOptions {
    ServingOptions {
        device: args.device,
        threads: args.threads,
        segment: args.segment,
        cuda_graph: !args.no_cuda_graph,
        engine: match args.runtime {
            Runs::Ort => Engine::Ort,
            Runs::Tract => Engine::Tract,
        },
        ..ServingOptions::default()
    }
}

fn save(args: &Args, serving: &Serving) -> Result<(), Failure> {
    Ok(args.save_state.as_ref().map_or(Ok(()), |path| serving.save_state(path))?)
}
