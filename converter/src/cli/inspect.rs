//! `dijiang inspect SRC`

use super::{Failure, Outcome, show};
use crate::convert::source::{self, Source};
use dijiang_passes::attention::rewrite::inspect;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::text;
use serde_json::json;
use std::path::PathBuf;

/// Show the attentions of a model, and why others were not recognised.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint directory, an ONNX file, or a directory that holds one
    source: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the graph in its textual form
    #[arg(long, conflicts_with = "json")]
    text: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let Source { mut graph, notes, warnings, .. } = source::open(&args.source, None)?;
    canonicalize(&mut graph)?;
    warnings.iter().for_each(|warning| show::warning(warning));
    // In JSON they are part of the object.
    if !args.json {
        notes.iter().for_each(|n| show::note(n));
    }
    if args.text {
        show::stream(&text::print(&graph));
        return Ok(Outcome::Fine);
    }
    let report = inspect(&graph);
    if args.json {
        show::object(&json!({
            "sites": show::sites(&report.sites), "misses": show::misses(&report.misses), "notes": notes,
            "warnings": warnings,
        }));
        return Ok(Outcome::Fine);
    }
    show::site_table(&report.sites);
    for miss in &report.misses {
        let what = if miss.is_attention { "missed" } else { "no attention" };
        show::line(&format!("  {what} {miss}"));
    }
    let missed = report.missed().count();
    show::line(&format!(
        "{} attentions, {missed} missed, {} other softmaxes",
        report.sites.len(),
        report.misses.len() - missed
    ));
    Ok(Outcome::Fine)
}
