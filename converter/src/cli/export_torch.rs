//! `dijiang export-torch BUNDLE`

use super::{Failure, Outcome, show};
use crate::torch::export::export_torch;
use dijiang_format::files;
use serde_json::json;
use std::path::PathBuf;

/// Put a PyTorch model into a bundle, to train it with transformers.
///
/// Writes modeling_dijiang.py and makes config.json name it. Then
/// `AutoModelForCausalLM.from_pretrained(BUNDLE, trust_remote_code=True)` loads the bundle's weights as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang export-torch bundle")]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let class = export_torch(&args.bundle)?;
    let code = args.bundle.join(files::TORCH);
    if args.json {
        show::object(&json!({"bundle": args.bundle, "code": code, "class": class}));
    } else {
        show::line(&format!("{}: {class}, which {} names", code.display(), files::CONFIG));
    }
    Ok(Outcome::Fine)
}
