//! `dijiang report BUNDLE… -o FILE.html`

use super::bar::Bar;
use super::os::FileError;
use super::{Failure, Outcome, numbers, show};
use crate::page::{PageOptions, page};
use dijiang_runtime::write_file;
use serde_json::json;
use std::path::PathBuf;

/// Write a page about bundles: what they are, how their attention looks beside softmax, and what was measured of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang report bundle -o report.html
  dijiang report softmax adaptive paper -o report.html --prompt 'Once upon a time there was a little girl'
  dijiang report adaptive -o report.html --bench bench.json --eval tasks.json perplexity.json")]
pub(super) struct Args {
    /// Directories that `dijiang convert` wrote
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    /// The HTML file to write
    #[arg(short, long)]
    output: PathBuf,
    /// What the attention maps are of; a short English text where nothing is given
    #[arg(long, value_name = "TEXT", conflicts_with = "text_file")]
    prompt: Option<String>,
    /// The same, from a file
    #[arg(long = "text", value_name = "FILE")]
    text_file: Option<PathBuf>,
    /// Tokens of it that are shown, at most
    #[arg(long, default_value_t = 64, allow_negative_numbers = true, value_parser = numbers::map_tokens())]
    tokens: usize,
    /// What `dijiang bench --json` printed
    #[arg(long = "bench", value_name = "FILE", num_args = 1..)]
    bench_files: Vec<PathBuf>,
    /// What `dijiang eval --json` printed
    #[arg(long = "eval", value_name = "FILE", num_args = 1..)]
    eval_files: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(FileError::of(path));
    let text = match &args.text_file {
        Some(path) => Some(read(path)?),
        None => args.prompt.clone(),
    };
    let options = PageOptions {
        bundles: args.bundles.clone(),
        text,
        tokens: args.tokens,
        bench: args.bench_files.clone(),
        eval: args.eval_files.clone(),
    };
    let made = page(&options, &mut Bar::new())?;
    write_file(&args.output, made.html.as_bytes()).map_err(FileError::of(&args.output))?;
    if args.json {
        show::object(&json!({"output": args.output, "bytes": made.html.len(), "sections": made.sections}));
        return Ok(Outcome::Fine);
    }
    show::line(&format!("{}: {:.1} MB", args.output.display(), made.html.len() as f64 / 1e6));
    for section in made.sections.iter().filter_map(|section| Some((section.section, section.why.as_ref()?))) {
        show::line(&format!("  without {}: {}", section.0, section.1));
    }
    Ok(Outcome::Fine)
}
