//! `dijiang convert SRC -o BUNDLE`

use super::{Failure, Outcome, show};
use crate::convert::{ConvertOptions, Converted, convert};
use crate::recipes;
use crate::target::Target;
use crate::verify::VerifyOptions;
use dijiang_passes::ir::dtype::DType;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Convert a checkpoint to a bundle, and prove it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A Hugging Face checkpoint (a directory with config.json and safetensors), or an ONNX file
    source: PathBuf,
    /// The directory to make
    #[arg(short, long)]
    output: PathBuf,
    /// A recipe's name (adaptive, paper, released, performer, pff, wpff, retnet, softmax) or a YAML file
    #[arg(long, default_value = recipes::DEFAULT)]
    recipe: String,
    /// What runs the serving graph: ort, portable or onnx27
    #[arg(long, default_value = "ort")]
    target: Target,
    /// f32, f16 or bf16; the checkpoint's where none is given
    #[arg(long)]
    dtype: Option<DType>,
    /// Rewrite only these layers, such as 0-3,7; the others stay softmax
    #[arg(long, value_parser = layers)]
    layers: Option<Layers>,
    /// Seed of the new parameters and of the checks' prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace a bundle that is there
    #[arg(long)]
    force: bool,
    /// Write without a proof
    #[arg(long)]
    no_verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

type Layers = Vec<usize>;

/// `0-3,7`
fn layers(text: &str) -> Result<Layers, String> {
    let number =
        |s: &str| s.trim().parse::<usize>().map_err(|_| format!("`{s}` is no layer (expected e.g. 0-3,7)"));
    let mut found = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => found.extend(number(first)?..=number(last)?),
            None => found.push(number(part)?),
        }
    }
    Ok(found)
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let options = ConvertOptions {
        recipe: recipes::load(&args.recipe)?,
        target: args.target,
        dtype: args.dtype,
        layers: args.layers.clone(),
        seed: args.seed,
        force: args.force,
        verify: (!args.no_verify).then(|| VerifyOptions { seed: args.seed, ..VerifyOptions::default() }),
    };
    let start = Instant::now();
    let converted = convert(&args.source, &args.output, &options, &mut show::Bar::new())?;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        print_json(args, &converted, seconds);
    } else {
        print_text(args, &converted, seconds);
    }
    Ok(Outcome::of(converted.written))
}

fn print_json(args: &Args, converted: &Converted, seconds: f64) {
    show::object(&json!({
        "bundle": args.output,
        "sites": show::sites(&converted.sites),
        "recipe": args.recipe,
        "target": args.target.name(),
        "dtype": converted.dtype.name(),
        "seconds": seconds,
        "bytes_written": converted.bytes_written,
        "dropped_inputs": converted.dropped_inputs,
        "added_inputs": converted.added_inputs,
        "notes": converted.notes,
        "checks": converted.verification.as_ref().map_or(json!([]), show::checks),
        "skipped": converted.verification.as_ref().map_or(json!([]), |v| json!(v.skipped)),
        "written": converted.written,
    }));
}

fn print_text(args: &Args, converted: &Converted, seconds: f64) {
    let lowered = converted.sites.iter().filter(|s| s.kept.is_none()).count();
    show::line(&format!(
        "{}: {lowered} of {} attentions are linear (recipe {}, target {}, {})",
        args.output.display(),
        converted.sites.len(),
        args.recipe,
        args.target,
        converted.dtype
    ));
    for site in &converted.sites {
        if let Some(reason) = &site.kept {
            show::line(&format!("  {} stays softmax: {reason}", site.name));
        }
    }
    for input in &converted.added_inputs {
        show::line(&format!(
            "  `{input}` is a new input: the graph counted it from the cache or the sequence"
        ));
    }
    for note in &converted.notes {
        show::line(&format!("  {note}"));
    }
    if let Some(verification) = &converted.verification {
        show::verification(verification);
    }
    let megabytes = converted.bytes_written as f64 / 1e6;
    show::line(&format!("{megabytes:.1} MB in {seconds:.1} s"));
    if !converted.written {
        show::note("a check failed: nothing was written (--no-verify writes it all the same)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(layers("0-2,7"), Ok(vec![0, 1, 2, 7]));
        assert!(layers("a").is_err() && layers("1-").is_err());
    }
}
