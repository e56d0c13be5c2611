//! `dijiang synth SHAPE -o DIR`

use super::bar::Bar;
use super::{Failure, Outcome, numbers, show};
use crate::synth::shapes::{self, SHAPES, Shape};
use crate::synth::{SynthOptions, synth};
use dijiang_format::dtype::DType;
use dijiang_format::words::counted;
use serde_json::json;
use std::path::PathBuf;

/// Write a random checkpoint of a published shape, to measure speed with.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang synth pythia-410m -o model
  dijiang synth tinyllama-1.1b -o model --layers 2 --dtype f32")]
pub(super) struct Args {
    /// pythia-70m, -160m, -410m, -1b, -1.4b or -2.8b, opt-350m, tinyllama-1.1b, llama2-7b, qwen2.5-0.5b, qwen3-0.6b, gemma3-1b
    #[arg(value_parser = shape)]
    shape: &'static Shape,
    /// The directory to write
    #[arg(short, long)]
    output: PathBuf,
    /// f32, f16 or bf16
    #[arg(long, default_value = "f16", value_parser = numbers::float)]
    dtype: DType,
    /// Seed of the numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Layers, instead of the shape's own
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::layers())]
    layers: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn shape(name: &str) -> Result<&'static Shape, String> {
    shapes::find(name).ok_or_else(|| {
        let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        format!("no shape is called `{name}` (expected one of {})", known.join(", "))
    })
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let options = SynthOptions { dtype: args.dtype, seed: args.seed, layers: args.layers };
    let written = synth(args.shape, &args.output, &options, &mut Bar::new())?;
    if args.json {
        show::object(&json!({
            "shape": args.shape.name, "output": args.output, "tensors": written.tensors,
            "parameters": written.parameters, "bytes": written.bytes,
        }));
    } else {
        show::line(&format!(
            "{}: {}, {} in {}, {} bytes",
            args.output.display(),
            args.shape.name,
            counted(written.parameters, "parameter"),
            counted(written.tensors, "tensor"),
            written.bytes
        ));
    }
    Ok(Outcome::Fine)
}
