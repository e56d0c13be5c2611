//! `dijiang scan SRC|BUNDLE [-o RECIPE.yaml] [--keep N|auto | --max-state SIZE[@TOKENS]]`

use super::bar::Bar;
use super::hub::HubArgs;
use super::os::FileError;
use super::{Failure, Outcome, numbers, show};
use crate::convert::scan::{Keep, Kept, ROWS, ScanOptions, Scanned, is_bundle, kept, kept_of_bundle, scan};
use crate::convert::state_budget::StateBudget;
use crate::recipes;
use crate::report::chart::{Axis, Chart, ChartError, Line, Scale};
use dijiang_format::dtype::DType;
use dijiang_format::manifest::Manifest;
use dijiang_format::recipe::Recipe;
use dijiang_format::words::{counted, listed};
use dijiang_runtime::{Device, write_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Measure which layers of a model look far, and write a recipe that gives those a longer window or leaves them softmax.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang scan model
  dijiang scan model -o far.yaml --device cuda:0
  dijiang scan model --data text.txt --one-in 4 --window 512 -o far.yaml
  dijiang scan model --keep 4 -o hybrid.yaml --svg frontier.svg
  dijiang scan model --max-state 8MiB@4096 -o hybrid.yaml
  dijiang scan bundle --keep 4 --data text.txt -o hybrid.yaml")]
pub(super) struct Args {
    /// A Hugging Face checkpoint (a directory with config.json and safetensors), a GGUF file, an ONNX file, or OWNER/MODEL of
    /// the Hugging Face hub; or a bundle, calibrated or trained, of which is measured which layers should have stayed softmax
    source: PathBuf,
    /// The recipe to write, for `convert --recipe`
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The recipe that it is made of, adaptive where not given, or that of the bundle; without --keep it has a window
    #[arg(long)]
    recipe: Option<String>,
    /// How many layers stay softmax, with a cache that grows, in place of wide ones; auto: as few as leave a tenth of what it
    /// costs to keep none. What more and fewer would cost together is measured too
    #[arg(long, value_name = "N|auto", conflicts_with_all = ["window", "one_in"])]
    keep: Option<Keep>,
    /// As many layers stay softmax as leave the state of one sequence within so many bytes, after so many tokens (2,048 where
    /// not given)
    #[arg(long, value_name = "SIZE[@TOKENS]", conflicts_with_all = ["keep", "window", "one_in"])]
    max_state: Option<StateBudget>,
    /// A picture of what more and fewer kept layers cost; with --keep or --max-state
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
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
    #[arg(long, value_parser = numbers::float)]
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
    #[command(flatten)]
    hub: HubArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    numbers::take_threads(args.threads);
    let keep = args.keep.or(args.max_state.map(Keep::Within));
    if args.svg.is_some() && keep.is_none() {
        return Err("--svg draws what kept layers cost, and none is kept (hint: --keep auto)".into());
    }
    let recipe = recipe(args, keep.is_some())?;
    let options = ScanOptions {
        recipe: recipe.clone(),
        keep,
        frontier: keep.is_some(),
        dtype: args.dtype,
        layers: None,
        data: args.data.clone(),
        context: args.context,
        rows: args.rows,
        device: args.device,
        threads: args.threads,
        seed: args.seed,
    };
    let source = args.hub.located(&args.source)?;
    let scanned = scan(&source, &std::env::temp_dir(), &options, &mut Bar::new())?;
    let recipe = match keep {
        Some(_) if scanned.reverse => kept_of_bundle(&Manifest::read(&args.source)?, &scanned.kept),
        Some(_) => kept(recipe, scanned.kept.clone()),
        None => recipes::with_wide(recipe, scanned.wide.clone()),
    };
    let write = |path: &Path, text: &str| write_file(path, text.as_bytes()).map_err(FileError::of(path));
    if let Some(output) = &args.output {
        write(output, &recipes::to_yaml(&recipe)?)?;
    }
    if let Some(svg) = &args.svg {
        write(svg, &picture(&scanned)?)?;
    }
    match args.json {
        true => show::object(&object(args, &scanned)?),
        false => print(args, &scanned, &recipe),
    }
    Ok(Outcome::Fine)
}

/// The recipe with what the call says.
fn recipe(args: &Args, keeps: bool) -> Result<Recipe, Failure> {
    if is_bundle(&args.source) {
        return of_bundle(args);
    }
    let mut recipe = recipes::load(args.recipe.as_deref().unwrap_or(recipes::DEFAULT))?;
    if keeps {
        return Ok(recipe);
    }
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

/// The recipe that a bundle was made by: what a call says of another would not be what was measured.
fn of_bundle(args: &Args) -> Result<Recipe, Failure> {
    let given = [("--recipe", args.recipe.is_some()), ("--dtype", args.dtype.is_some())];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => Err(format!(
            "{}: a bundle is scanned as it is, by its own recipe and type (hint: leave {option} out, or scan the model that it was made of)",
            args.source.display()
        )
        .into()),
        None => Ok(Manifest::read(&args.source)?.recipe),
    }
}

fn object(args: &Args, scanned: &Scanned) -> Result<Value, Failure> {
    let mut object = serde_json::to_value(scanned)?;
    object["output"] = json!(args.output);
    Ok(object)
}

/// What is lost over how many layers stay softmax.
fn picture(scanned: &Scanned) -> Result<String, ChartError> {
    let line = |name: &str, cost: &dyn Fn(&Kept) -> Option<f64>| Line {
        name: name.to_owned(),
        points: scanned.frontier.iter().filter_map(|kept| Some((kept.layers as f64, cost(kept)?))).collect(),
    };
    let lines = vec![
        line("texts that come twice", &|kept| Some(kept.copying)),
        line("given texts", &|kept| kept.text),
    ];
    let chart = Chart {
        title: "What keeping layers softmax leaves of the loss".to_owned(),
        x: Axis { name: "layers that stay softmax", scale: Scale::Even },
        y: Axis { name: "nats a token more", scale: Scale::Even },
        lines,
    };
    chart.draw()
}

fn print(args: &Args, scanned: &Scanned, recipe: &Recipe) {
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:>10.4}"));
    show::line(&format!(
        "{:>7}{:>10}{}",
        "layer",
        "copying",
        scanned.text.map_or_else(String::new, |_| format!("{:>10}", "text"))
    ));
    show::line(&format!(
        "{:>7}{:>10.4}{}",
        if scanned.reverse { "softmax" } else { "all see" },
        scanned.copying,
        text(scanned.text)
    ));
    for layer in &scanned.layers {
        let mark = match (scanned.wide.contains(&layer.layer), scanned.kept.contains(&layer.layer)) {
            (true, _) => "  wide",
            (_, true) => "  softmax",
            _ => "",
        };
        show::line(&format!("{:>7}{:>+10.4}{}{mark}", layer.layer, layer.copying, text(layer.text)));
    }
    let (what, chosen) = match args.keep.is_some() || args.max_state.is_some() {
        true => ("softmax", &scanned.kept),
        false => ("wide", &scanned.wide),
    };
    let told = match scanned.reverse {
        true => "how many fewer where one layer is softmax and the others are as they are served".to_owned(),
        false => format!("how many more where one layer sees {} tokens back", scanned.window),
    };
    let chosen = if chosen.is_empty() { "none".to_owned() } else { listed(chosen) };
    show::line(&format!("nats a token, and {told}; {what}: {chosen}"));
    print_frontier(scanned);
    match &args.output {
        Some(output) if scanned.reverse => show::line(&format!(
            "{}: the recipe `{}` (next: `dijiang convert SRC -o BUNDLE --recipe {}`, SRC the model that {} was made of)",
            output.display(),
            recipe.name,
            output.display(),
            args.source.display()
        )),
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

fn print_frontier(scanned: &Scanned) {
    let others = if scanned.reverse { "as served" } else { "near" };
    for kept in &scanned.frontier {
        let text = kept.text.map_or_else(String::new, |text| format!(", {text:+.4} on the given texts"));
        show::line(&format!(
            "{:>14} softmax and all others {others}: {:+.4} copying{text}",
            counted(kept.layers, "layer"),
            kept.copying
        ));
    }
}
