//! `dijiang import-weights BUNDLE FILE`

use super::bar::Bar;
use super::{Failure, Outcome, show};
use crate::torch::import::{Imported, import_weights};
use dijiang_format::words::counted;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Put trained weights into a bundle.
///
/// Every tensor must be there under the bundle's name and with its shape. Floats of another type become the type that
/// the bundle stores. The graphs stay as they are, and serve the new weights.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang import-weights bundle trained/model.safetensors
  dijiang import-weights bundle trained")]
pub(super) struct Args {
    /// A directory that `dijiang convert` wrote
    bundle: PathBuf,
    /// A safetensors file, or a directory as `save_pretrained` writes it
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let imported = import_weights(&args.bundle, &args.file, &mut Bar::new())?;
    if args.json {
        print_json(args, &imported);
    } else {
        print_text(args, &imported);
    }
    Ok(Outcome::Fine)
}

fn print_json(args: &Args, imported: &Imported) {
    let cast = imported
        .cast
        .iter()
        .map(|((from, to), tensors)| json!({"from": from.name(), "to": to.name(), "tensors": tensors}));
    show::object(&json!({
        "bundle": args.bundle,
        "tensors": imported.tensors,
        "cast": cast.collect::<Vec<Value>>(),
        "bytes_written": imported.weights.bytes,
        "sha256": imported.weights.sha256,
    }));
}

fn print_text(args: &Args, imported: &Imported) {
    show::line(&format!(
        "{}: {} from {}",
        args.bundle.display(),
        counted(imported.tensors, "tensor"),
        args.file.display()
    ));
    for ((from, to), tensors) in &imported.cast {
        show::line(&format!(
            "  stored as {to}, as the bundle was: {} of {from}",
            counted(*tensors, "tensor")
        ));
    }
    show::note(&format!(
        "the checks of the conversion were of other weights: dijiang verify {}",
        args.bundle.display()
    ));
}
