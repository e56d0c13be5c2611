//! `dijiang generate BUNDLE --prompt P`

use super::{Failure, Outcome, show};
use crate::bundle::layout;
use crate::bundle::manifest::{Manifest, Model};
use dijiang_runtime::{
    Decoder, GenerateOptions, LoadOptions, OrtRuntime, Runtime, Tokenizer, TractRuntime, generate,
};
use std::path::PathBuf;

/// Continue a text.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    bundle: PathBuf,
    /// The text to continue
    #[arg(long, required_unless_present = "prompt_file")]
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
    runtime: Engine,
    /// Prompt tokens fed at a time
    #[arg(long, default_value_t = 512)]
    segment: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Ort,
    Tract,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let manifest = Manifest::read(&args.bundle)?;
    let tokenizer = Tokenizer::load(&args.bundle.join(layout::TOKENIZER))?;
    let prompt = prompt(args)?;
    check_prompt(&tokenizer.encode(&prompt)?, args.tokens, &manifest.model)?;
    let mut decoder = load(args, &manifest)?;
    let options = GenerateOptions {
        prompt: prompt.clone(),
        max_new_tokens: args.tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: manifest.model.eos.iter().map(|id| *id as i64).collect(),
        segment: args.segment,
    };
    if args.json {
        let generated = generate(&mut decoder, &tokenizer, &options, &mut |_| {})?;
        show::object(&serde_json::to_value(&generated)?);
        return Ok(Outcome::Fine);
    }
    show::stream(&prompt);
    let generated = generate(&mut decoder, &tokenizer, &options, &mut show::stream)?;
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
fn check_prompt(ids: &[i64], new_tokens: usize, model: &Model) -> Result<(), Failure> {
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
    if ids.len().saturating_add(new_tokens) > positions {
        let hint = match positions.saturating_sub(ids.len()) {
            0 => "shorten it".to_owned(),
            left => format!("-n {left} at most"),
        };
        return Err(format!(
            "prompt: {} tokens and {new_tokens} new ones, but the model has {positions} positions (hint: {hint})",
            ids.len()
        )
        .into());
    }
    Ok(())
}

fn load(args: &Args, manifest: &Manifest) -> Result<Decoder, Failure> {
    // tract has no LinearAttention, and the CPU no bf16 arithmetic: this is the same model in standard
    // operators and f32.
    let is_softmax = manifest.sites.iter().all(|site| !site.lowered);
    let portable = if is_softmax { layout::SOFTMAX } else { layout::CHUNKED };
    let (runtime, file): (Box<dyn Runtime>, PathBuf) = match args.runtime {
        Engine::Ort if manifest.dtype == "bf16" => (Box::new(OrtRuntime::new()?), args.bundle.join(portable)),
        Engine::Ort => (Box::new(OrtRuntime::new()?), args.bundle.join(layout::MODEL)),
        Engine::Tract => (Box::new(TractRuntime), args.bundle.join(portable)),
    };
    let released_opsets_only = manifest.target != "onnx27";
    let session = runtime.load(&file, &LoadOptions { released_opsets_only, ..LoadOptions::default() })?;
    Ok(Decoder::new(session)?)
}
