//! `dijiang inspect SRC`

use super::{Failure, Outcome, show};
use crate::checkpoint;
use crate::onnx::import::import;
use dijiang_passes::attention::rewrite::inspect;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::text;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Show the attentions of a model, and why others were not recognised.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint directory, or an ONNX file
    source: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the graph in its textual form
    #[arg(long, conflicts_with = "json")]
    text: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let mut graph = load(&args.source)?;
    canonicalize(&mut graph)?;
    if args.text {
        show::stream(&text::print(&graph));
        return Ok(Outcome::Fine);
    }
    let report = inspect(&graph);
    if args.json {
        show::object(&json!({"sites": show::sites(&report.sites), "misses": show::misses(&report.misses)}));
        return Ok(Outcome::Fine);
    }
    show::site_table(&report.sites);
    for miss in &report.misses {
        show::line(&format!("  softmax {:?}: {} {}", miss.node, miss.pattern, miss.miss));
    }
    show::line(&format!("{} attentions, {} other softmaxes", report.sites.len(), report.misses.len()));
    Ok(Outcome::Fine)
}

fn load(source: &Path) -> Result<Graph, Failure> {
    if source.extension().is_some_and(|e| e == "onnx") {
        return Ok(import(source)?);
    }
    Ok(checkpoint::open(source)?.build(None)?.graph)
}
