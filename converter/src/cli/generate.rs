//! `dijiang generate BUNDLE --prompt P`

use super::{Failure, Outcome, show};
use crate::bundle::layout;
use crate::bundle::manifest::{Manifest, Model};
use dijiang_runtime::{Device, Engine, GenerateOptions, Serving, ServingOptions, Tokenizer, generate};
use std::path::PathBuf;

/// Continue a text.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    bundle: PathBuf,
    /// The text to continue; with --load-state, what comes behind the text before
    #[arg(long, required_unless_present_any = ["prompt_file", "load_state"])]
    prompt: Option<String>,
    /// A file with the text to continue
    #[arg(long, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// New tokens at most
    #[arg(short = 'n', long, default_value_t = 64)]
    tokens: usize,
    /// 0 takes the likeliest token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Probability mass to choose from
    #[arg(long, default_value_t = 1.0)]
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
    #[arg(long)]
    threads: Option<usize>,
    /// Go on from a state that --save-state wrote
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Write what the model keeps of the text, to go on from another time
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Prompt tokens fed at a time, at most
    #[arg(long)]
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
    let tokenizer = Tokenizer::load(&args.bundle.join(layout::TOKENIZER))?;
    let prompt = prompt(args)?;
    let ids = match args.load_state {
        Some(_) => tokenizer.encode_more(&prompt)?,
        None => tokenizer.encode(&prompt)?,
    };
    check_prompt(&ids, 0, args.tokens, &manifest.model)?;
    let mut serving = Serving::open(&args.bundle, &serving(args))?;
    if let Some(state) = &args.load_state {
        serving.load_state(state)?;
        check_prompt(&ids, serving.seen(), args.tokens, &manifest.model)?;
    }
    let options = GenerateOptions {
        prompt: ids,
        resume: args.load_state.is_some(),
        feed_last: args.save_state.is_some(),
        max_new_tokens: args.tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: manifest.model.eos.iter().map(|id| *id as i64).collect(),
    };
    if args.json {
        let generated = generate(&mut serving, &tokenizer, &options, &mut |_| {})?;
        save(args, &serving)?;
        show::object(&serde_json::to_value(&generated)?);
        return Ok(Outcome::Fine);
    }
    show::stream(&prompt);
    let generated = generate(&mut serving, &tokenizer, &options, &mut show::stream)?;
    save(args, &serving)?;
    show::line("");
    let rate = generated.tokens.len() as f64 / generated.decode_seconds.max(1e-9);
    show::note(&format!(
        "prompt: {} tokens in {:.2} s; text: {} tokens, {rate:.1} per second; state: {} bytes",
        generated.prompt_tokens,
        generated.prefill_seconds,
        generated.tokens.len(),
        generated.state_bytes
    ));
    Ok(Outcome::Fine)
}

fn prompt(args: &Args) -> Result<String, Failure> {
    let Some(file) = &args.prompt_file else { return Ok(args.prompt.clone().unwrap_or_default()) };
    Ok(std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?)
}

/// Refuses what the model has no row for in its tables, which a runtime would only find while it runs.
fn check_prompt(ids: &[i64], seen: usize, new_tokens: usize, model: &Model) -> Result<(), Failure> {
    // An ONNX source may not say how many tokens it knows.
    let outside = |id: &&i64| model.vocab > 0 && !(0..model.vocab as i64).contains(*id);
    if let Some(id) = ids.iter().find(outside) {
        return Err(format!(
            "prompt: the tokenizer gives token {id}, but the model knows {} (hint: is {} the model's own?)",
            model.vocab,
            layout::TOKENIZER
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
