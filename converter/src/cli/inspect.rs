//! `dijiang inspect SRC`

use super::hub::HubArgs;
use super::{Failure, Outcome, show};
use crate::convert::ConvertError;
use crate::convert::refusal::would_convert;
use crate::convert::scan;
use crate::convert::source::{self, Source};
use crate::recipes::{self, DEFAULT};
use dijiang_format::manifest::SourceKind;
use dijiang_format::words::counted;
use dijiang_passes::attention::rewrite::inspect;
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::text;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Show the attentions of a model, and why others were not recognised.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang inspect model
  dijiang inspect model.onnx --json")]
pub(super) struct Args {
    /// A checkpoint directory, a GGUF file, an ONNX file, a directory that holds one, or OWNER/MODEL of the Hugging Face hub
    source: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the graph in its textual form
    #[arg(long, conflicts_with = "json")]
    text: bool,
    #[command(flatten)]
    hub: HubArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let source = &args.hub.located(&args.source)?;
    let Source { kind, mut graph, notes, mut warnings, .. } = source::open(source, None)?;
    if kind == SourceKind::Checkpoint {
        canonicalize(&mut graph)?;
    }
    let report = inspect(&graph);
    let refused = if args.text { None } else { tried(source, &graph, report.sites.len(), &mut warnings)? };
    warnings.iter().for_each(|warning| show::warning(warning));
    // In JSON they are part of the object.
    if !args.json {
        notes.iter().for_each(|n| show::note(n));
    }
    if args.text {
        show::stream(&text::print(&graph));
        return Ok(Outcome::Fine);
    }
    if args.json {
        show::object(&json!({
            "sites": show::sites(&report.sites), "misses": show::misses(&report.misses), "notes": notes,
            "warnings": warnings, "refused": refused.map(|error| error.to_string()),
        }));
        return Ok(Outcome::Fine);
    }
    show::site_table(&report.sites);
    for miss in &report.misses {
        let what = if miss.is_attention { "missed" } else { "no attention" };
        show::line(&format!("  {what} {miss}"));
    }
    let missed = report.missed().count();
    let others = report.misses.len() - missed;
    show::line(&format!(
        "{}, {missed} missed, {others} other {}",
        counted(report.sites.len(), "attention"),
        if others == 1 { "softmax" } else { "softmaxes" }
    ));
    if scan::is_bundle(&args.source) {
        let bundle = args.source.display();
        show::line(&format!(
            "{bundle}: this is a bundle already, and what is listed is its source (hint: `dijiang info {bundle}` says what it became)"
        ));
    } else if let Some(error) = refused {
        show::line(&format!("`dijiang convert` refuses it under its default recipe, {DEFAULT}: {error}"));
    }
    Ok(Outcome::Fine)
}

/// A model of more attentions is only looked at: what a conversion makes of it takes long to work out.
const MOST_TRIED: usize = 512;

/// What a conversion would be refused for, where that is tried; a warning says where it is not.
fn tried(
    source: &Path,
    graph: &Graph,
    many: usize,
    warnings: &mut Vec<String>,
) -> Result<Option<ConvertError>, Failure> {
    if many <= MOST_TRIED {
        return refused(source, graph);
    }
    let source = source.display();
    warnings.push(format!(
        "{source}: it was not tried whether `dijiang convert` refuses it, as it has {many} attentions and {MOST_TRIED} are tried at most (hint: `dijiang convert {source} -o BUNDLE --estimate` tries it)"
    ));
    Ok(None)
}

/// The error that a conversion by the default recipe would end with. Where no attention is found, the table of them
/// has said why.
fn refused(source: &Path, graph: &Graph) -> Result<Option<ConvertError>, Failure> {
    let refused = would_convert(source, graph, &recipes::load(DEFAULT)?).err();
    Ok(refused.filter(|error| !matches!(error, ConvertError::NoSites { .. })))
}
