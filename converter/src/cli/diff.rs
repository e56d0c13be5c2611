//! `dijiang diff A B`

use super::bar::Bar;
use super::{Failure, Outcome, show};
use crate::provenance::diff::{Difference, EntryDifference, FileDifference, diff};
use crate::provenance::graphs::GraphDifference;
use serde_json::Value;
use std::path::PathBuf;

/// Show how two bundles differ: their manifests, files, graphs, weights, and what they compute.
///
/// What they compute is compared by the logits after the prompts of `dijiang verify`. Exits with 0 where the two are the
/// same and with 1 where they differ.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang diff before after
  dijiang diff before after --json")]
pub(super) struct Args {
    a: PathBuf,
    b: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let found = diff(&args.a, &args.b, &mut Bar::new())?;
    if args.json {
        show::object(&serde_json::to_value(&found)?);
    } else {
        print_text(&found);
    }
    Ok(Outcome::of(found.same))
}

fn print_text(found: &Difference) {
    found.manifest.iter().for_each(|entry| show::line(&of_entry(entry)));
    found.files.iter().for_each(|file| show::line(&of_file(file)));
    found.graphs.iter().for_each(print_graph);
    for tensor in &found.weights {
        let [a, b] = [&tensor.a, &tensor.b].map(|told| told.as_deref().unwrap_or("none"));
        let shapes = if a == b { a.to_owned() } else { format!("{a} -> {b}") };
        let largest = tensor.largest.map_or(String::new(), |x| format!(", largest difference {x:.3e}"));
        show::line(&format!("weight {}: {shapes}{largest}", tensor.name));
    }
    if let Some(numbers) = &found.numerics {
        show::line(&format!(
            "logits in {}: relative error {:.2e}, largest difference {:.2e}, the same next token after {:.0} % of prompts",
            numbers.runtime,
            numbers.relative_error,
            numbers.largest,
            numbers.agreement * 100.0
        ));
    }
    match (found.same, &found.skipped) {
        (true, _) => show::line("the same"),
        (false, Some(why)) => show::line(&format!("logits were not compared: {why}")),
        (false, None) => {}
    }
}

fn of_entry(entry: &EntryDifference) -> String {
    let [a, b] = [&entry.a, &entry.b].map(|value| value.as_ref().map_or("none".to_owned(), Value::to_string));
    format!("{}: {a} -> {b}", entry.place)
}

fn of_file(file: &FileDifference) -> String {
    match (file.a, file.b) {
        (Some(a), Some(b)) if a == b => format!("{}: {a} bytes, not the same", file.name),
        (Some(a), Some(b)) => format!("{}: {a} bytes -> {b} bytes", file.name),
        (Some(_), None) => format!("{}: only in A", file.name),
        _ => format!("{}: only in B", file.name),
    }
}

/// Nodes that are told of a graph, at most.
const MOST_NODES: usize = 10;

fn print_graph(graph: &GraphDifference) {
    for (operator, [a, b]) in &graph.operators {
        show::line(&format!("{}: {operator}: {a} -> {b}", graph.file));
    }
    if !graph.text.is_empty() {
        graph.text.iter().for_each(|line| show::line(&format!("  {line}")));
        return;
    }
    for (what, nodes) in
        [("only in A", &graph.only_a), ("only in B", &graph.only_b), ("changed", &graph.changed)]
    {
        for node in nodes.iter().take(MOST_NODES) {
            show::line(&format!("  {what}: {node}"));
        }
        if nodes.len() > MOST_NODES {
            show::line(&format!("  {what}: {} more (hint: --json names them)", nodes.len() - MOST_NODES));
        }
    }
}
