//! `dijiang plot METRICS.jsonl… -o FILE.svg`

use super::os::FileError;
use super::{Failure, Outcome, show};
use crate::train::{finetune, metrics, plot};
use dijiang_format::words::counted;
use dijiang_runtime::write_file;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Draw the loss and the validation perplexity of training runs beside each other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang plot bundle -o loss.svg
  dijiang plot a/train/metrics.jsonl b/train/metrics.jsonl -o loss.svg")]
pub(super) struct Args {
    /// Each run's metrics.jsonl, or the bundle that it trained
    #[arg(required = true)]
    metrics: Vec<PathBuf>,
    /// The SVG file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let run = |path: &PathBuf| Ok::<_, Failure>((name(path), metrics::read(&file(path))?));
    let runs = args.metrics.iter().map(run).collect::<Result<Vec<_>, _>>()?;
    write_file(&args.output, plot::compare(&runs)?.as_bytes()).map_err(FileError::of(&args.output))?;
    if args.json {
        let runs = runs.iter().map(|(name, lines)| json!({"name": name, "steps": lines.len()}));
        show::object(&json!({"output": args.output, "runs": runs.collect::<Vec<_>>()}));
        return Ok(Outcome::Fine);
    }
    show::line(&format!("{}: {}", args.output.display(), counted(runs.len(), "run")));
    Ok(Outcome::Fine)
}

/// What was measured in a bundle, or the file itself.
fn file(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(finetune::DIR).join(metrics::FILE),
        false => path.to_owned(),
    }
}

/// The bundle where the file lies in one, or the file.
fn name(path: &Path) -> String {
    let in_bundle = Path::new(finetune::DIR).join(metrics::FILE);
    let bundle = path.ends_with(&in_bundle).then(|| path.ancestors().nth(2)).flatten();
    let shown = bundle.filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(path);
    shown.display().to_string()
}
