//! `dijiang scan SRC [-o RECIPE.yaml]`

use super::bar::Bar;
use super::{Failure, Outcome, numbers, show};
use crate::convert::scan::{ROWS, ScanOptions, Scanned, scan};
use crate::recipes;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::Recipe;
use dijiang_runtime::{Device, write_file};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Measure which layers of a model look far, and write a recipe that gives those a longer window.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang scan model
  dijiang scan model -o far.yaml --device cuda:0
  dijiang scan model --data text.txt --one-in 4 --window 512 -o far.yaml")]
pub(super) struct Args {
    /// A Hugging Face checkpoint (a directory with config.json and safetensors), or an ONNX file
    source: PathBuf,
    /// The recipe to write, for `convert --recipe`
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The recipe that it is made of; it has a window
    #[arg(long, default_value = recipes::DEFAULT)]
    recipe: String,
    /// Tokens that a wide layer sees, in place of the recipe's
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count32())]
    window: Option<u32>,
    /// One layer of so many is wide, in place of the recipe's
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::count32())]
    one_in: Option<u32>,
    /// Texts to measure on, beside some that come twice: as for `calibrate`
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Tokens per row; at least four windows where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::context())]
    context: Option<u64>,
    /// Rows of each kind of text
    #[arg(long, default_value_t = ROWS, allow_negative_numbers = true, value_parser = numbers::count64())]
    rows: u64,
    /// f32, f16 or bf16; the checkpoint's where none is given. Numbers are computed in f32
    #[arg(long)]
    dtype: Option<DType>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads that it may take; all cores where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Seed of the texts that come twice
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    numbers::take_threads(args.threads);
    let recipe = recipe(args)?;
    let options = ScanOptions {
        recipe: recipe.clone(),
        dtype: args.dtype,
        layers: None,
        data: args.data.clone(),
        context: args.context,
        rows: args.rows,
        device: args.device,
        threads: args.threads,
        seed: args.seed,
    };
    let scanned = scan(&args.source, &std::env::temp_dir(), &options, &mut Bar::new())?;
    let recipe = recipes::with_wide(recipe, scanned.wide.clone());
    if let Some(output) = &args.output {
        write_file(output, recipes::to_yaml(&recipe)?.as_bytes())
            .map_err(|e| format!("{}: {e}", output.display()))?;
    }
    match args.json {
        true => show::object(&object(args, &scanned)?),
        false => print(args, &scanned, &recipe),
    }
    Ok(Outcome::Fine)
}

/// The recipe with what the call says.
fn recipe(args: &Args) -> Result<Recipe, Failure> {
    let mut recipe = recipes::load(&args.recipe)?;
    let Some(wide) = recipe.wide.as_mut() else {
        return Err(format!(
            "recipe `{}`: it has no `wide` layers to find (hint: write `wide: {{window: 256, one_in: 5}}` beside its `local`, or take --recipe {})",
            recipe.name, recipes::DEFAULT
        )
        .into());
    };
    wide.layers = None;
    wide.window = args.window.unwrap_or(wide.window);
    wide.one_in = args.one_in.unwrap_or(wide.one_in);
    Ok(recipes::checked(recipe)?)
}

fn object(args: &Args, scanned: &Scanned) -> Result<Value, Failure> {
    let mut object = serde_json::to_value(scanned)?;
    object["output"] = json!(args.output);
    Ok(object)
}

fn print(args: &Args, scanned: &Scanned, recipe: &Recipe) {
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:>10.4}"));
    show::line(&format!(
        "{:>7}{:>10}{}",
        "layer",
        "copying",
        scanned.text.map_or_else(String::new, |_| format!("{:>10}", "text"))
    ));
    show::line(&format!("{:>7}{:>10.4}{}", "all see", scanned.copying, text(scanned.text)));
    for layer in &scanned.layers {
        let mark = if scanned.wide.contains(&layer.layer) { "  wide" } else { "" };
        show::line(&format!("{:>7}{:>+10.4}{}{mark}", layer.layer, layer.copying, text(layer.text)));
    }
    let wide: Vec<String> = scanned.wide.iter().map(ToString::to_string).collect();
    show::line(&format!(
        "nats a token, and how many more where one layer sees {} tokens back; wide: {}",
        scanned.window,
        if wide.is_empty() { "none".to_owned() } else { wide.join(", ") }
    ));
    match &args.output {
        Some(output) => show::line(&format!(
            "{}: the recipe `{}` (next: `dijiang convert {} -o BUNDLE --recipe {}`)",
            output.display(),
            recipe.name,
            args.source.display(),
            output.display()
        )),
        None => show::line("nothing was written (hint: -o RECIPE.yaml)"),
    }
}
