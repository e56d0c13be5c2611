//! `dijiang generate BUNDLE --prompt P`

use super::bar::Bar;
use super::os::FileError;
use super::paths::STDIN;
use super::{Failure, Outcome, numbers, show};
use crate::chat::{Conversation, Template};
use crate::provenance::opened::check_whole;
use crate::report::progress::Progress as _;
use crate::serving::{OpenError, open};
use clap::ArgGroup;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, Model, Site};
use dijiang_format::recipe::Rule;
use dijiang_format::words::counted;
use dijiang_runtime::{
    Device, Engine, GenerateOptions, Generated, RuntimeError, Serving, ServingOptions, Tokenizer, generate,
};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

/// Continue a text, or several side by side.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang generate bundle --prompt 'Once upon a time' -n 100
  dijiang generate bundle --prompt-file prompts.txt --lines --json
  dijiang generate bundle --prompt 'A story.' --save-state story.safetensors
  dijiang generate bundle --load-state story.safetensors --prompt ' It went on.'
  dijiang generate bundle --chat
  dijiang generate bundle --chat --system 'Answer in one word.' --prompt 'What is the capital of France?'")]
#[command(group(ArgGroup::new("begins").required(true).multiple(true).args(["prompt", "prompt_file", "load_state", "chat"])))]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    /// The text to continue; with --load-state, what comes behind the text before. Given several times, each is
    /// continued as if it were alone
    #[arg(short, long)]
    prompt: Vec<String>,
    /// A file with the text to continue; - is stdin
    #[arg(long, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Every line of the file that is not empty is a text of its own
    #[arg(long, requires = "prompt_file", conflicts_with = "prompt")]
    lines: bool,
    /// Talk with the model in its chat template: a line of stdin is a message, and the state stays from one to the next. With
    /// --prompt those are the messages
    #[arg(long, conflicts_with_all = ["prompt_file", "load_state", "save_state", "json"])]
    chat: bool,
    /// What the model is told to be, before the first message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// New tokens at most [default: 64, and 512 of each answer of --chat]
    #[arg(short = 'n', long, allow_negative_numbers = true, value_parser = numbers::steps())]
    tokens: Option<usize>,
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

/// New tokens of a text and of an answer, where nothing is said.
const TOKENS: usize = 64;
const ANSWER: usize = 512;

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let manifest = Manifest::read(&args.bundle)?;
    if args.chat {
        return talk(args, &manifest);
    }
    let tokens = args.tokens.unwrap_or(TOKENS);
    let tokenizer = tokenizer(&args.bundle, &manifest)?;
    let texts = texts(args)?;
    let encode = |text: &String| match args.load_state {
        Some(_) => tokenizer.encode_more(text),
        None => tokenizer.encode(text),
    };
    let prompts = texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let check = |seen| prompts.iter().try_for_each(|ids| check_prompt(ids, seen, tokens, &manifest.model));
    check(0)?;
    let mut serving = opened(args)?;
    if let Some(state) = &args.load_state {
        serving.load_state(state)?;
        check(serving.seen())?;
    }
    let options = GenerateOptions {
        prompts,
        resume: args.load_state.is_some(),
        feed_last: args.save_state.is_some(),
        ..choices(args, &manifest.model, tokens)
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
        note_untrained(args, &manifest);
    }
    Ok(Outcome::Fine)
}

/// The bundle's own. Where it cannot be read, a file that is not as it was written is the reason.
fn tokenizer(bundle: &Path, manifest: &Manifest) -> Result<Tokenizer, Failure> {
    let found = Tokenizer::load(&bundle.join(files::TOKENIZER));
    if found.is_err() {
        check_whole(bundle, manifest)?;
    }
    Ok(found?)
}

/// Loads the bundle, which may take long.
fn opened(args: &Args) -> Result<Serving, Failure> {
    let mut bar = Bar::new();
    bar.stage(&format!("loading {}", args.bundle.display()));
    let serving = open(&args.bundle, &serving(args));
    bar.done();
    serving.map_err(|error| with_other_runtime(args, error))
}

/// What is said where ONNX Runtime is missing: tract is built in.
fn with_other_runtime(args: &Args, error: OpenError) -> Failure {
    let is_missing = matches!(
        &error,
        OpenError::Runtime(RuntimeError::LibraryMissing { .. } | RuntimeError::LibraryTooOld { .. })
    );
    match is_missing && args.device == Device::Cpu {
        true => format!("{error}; --runtime tract serves without it, and slower").into(),
        false => error.into(),
    }
}

/// How tokens are chosen, and when they end.
fn choices(args: &Args, model: &Model, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: model.eos.iter().map(|id| *id as i64).collect(),
        ..GenerateOptions::default()
    }
}

fn note_untrained(args: &Args, manifest: &Manifest) {
    if is_untrained(manifest) {
        show::note(&format!(
            "{}: its attention was never trained, and its texts are worse than those of the model it came from (hint: `dijiang calibrate` and `dijiang finetune`)",
            args.bundle.display()
        ));
    }
}

/// Whether what took the place of softmax has the numbers that the conversion gave it, and those want training.
fn is_untrained(manifest: &Manifest) -> bool {
    manifest.trained.is_none()
        && !manifest.source.own_attention
        && manifest.recipe.rule != Rule::None
        && manifest.sites.iter().any(Site::is_linear)
}

/// A conversation, by the messages of the call or by lines of stdin.
fn talk(args: &Args, manifest: &Manifest) -> Result<Outcome, Failure> {
    let mut conversation = Conversation::new(Template::of(&args.bundle)?, args.system.as_deref());
    let tokenizer = Tokenizer::load(&args.bundle.join(files::TOKENIZER))?;
    let mut serving = opened(args)?;
    let mut how = choices(args, &manifest.model, args.tokens.unwrap_or(ANSWER));
    how.stop_ids.extend(conversation.end().and_then(|end| tokenizer.token_id(end)));
    let mut answers = Vec::new();
    let mut said = args.prompt.iter().cloned();
    while let Some(message) = if args.prompt.is_empty() { listen()? } else { said.next() } {
        let (text, resume) = conversation.say(&message)?;
        // A template writes the special tokens itself.
        let prompt = tokenizer.encode_more(&text)?;
        let seen = if resume { serving.seen() } else { 0 };
        check_prompt(&prompt, seen, how.max_new_tokens, &manifest.model)?;
        let options = GenerateOptions { prompts: vec![prompt], resume, feed_last: true, ..how.clone() };
        let answer = generate(&mut serving, &tokenizer, &options, &mut |_, piece| show::stream(piece))?;
        show::line("");
        answer.iter().for_each(|answer| conversation.answered(&answer.text));
        answers.extend(answer);
    }
    if !answers.is_empty() {
        print_rates_of_answers(&answers);
        note_untrained(args, manifest);
    }
    Ok(Outcome::Fine)
}

/// A message from stdin: a line that is not empty, or none at its end.
fn listen() -> Result<Option<String>, Failure> {
    loop {
        if std::io::stdin().is_terminal() {
            show::stream("> ");
        }
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if !line.trim().is_empty() {
            return Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()));
        }
    }
}

fn print_rates_of_answers(answers: &[Generated]) {
    let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    let seconds: f64 = answers.iter().map(|answer| answer.decode_seconds).sum();
    let last = answers.last().map_or(0, |answer| answer.state_bytes);
    show::note(&format!(
        "{}, {tokens} tokens, {:.1} per second; state: {last} bytes",
        counted(answers.len(), "answer"),
        tokens as f64 / seconds.max(1e-9)
    ));
}

/// The texts to continue, at least one.
fn texts(args: &Args) -> Result<Vec<String>, Failure> {
    let texts = match &args.prompt_file {
        None if args.prompt.is_empty() => vec![String::new()],
        None => args.prompt.clone(),
        Some(file) => {
            let text = match file.as_os_str() == STDIN {
                true => std::io::read_to_string(std::io::stdin()),
                false => std::fs::read_to_string(file),
            };
            let text = text.map_err(FileError::of(file))?;
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
    // The first token of each comes with its prompt.
    let rate = match tokens > found.len() {
        true => format!(", {:.1} per second", tokens as f64 / seconds.max(1e-9)),
        false => String::new(),
    };
    show::note(&format!(
        "prompt: {} in {:.2} s; text: {}{rate}; state: {} bytes",
        counted(sum(|one| one.prompt_tokens), "token"),
        longest(|one| one.prefill_seconds),
        counted(tokens, "token"),
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
        few_prompts: true,
        ..ServingOptions::default()
    }
}

fn save(args: &Args, serving: &Serving) -> Result<(), Failure> {
    Ok(args.save_state.as_ref().map_or(Ok(()), |path| serving.save_state(path))?)
}
