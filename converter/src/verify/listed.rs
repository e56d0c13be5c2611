//! What the manifest says of the bundle's files: that they are there, and are what it says.

use super::features::Pictures;
use super::prompts::Fixed;
use super::table::{Check, Comparison, Measure};
use super::{Verifier, VerifyError, read_back};
use crate::bundle::states::states;
use crate::checkpoint::digests::{Compared, Difference, compare};
use crate::provenance::files::differing;
use dijiang_format::files;
use dijiang_format::manifest::{Extent, Manifest, State};
use dijiang_format::names::{IDS, MASK};
use dijiang_format::words::counted;
use dijiang_passes::attention::lower::tokens_first;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::verify::verify as violations;
use dijiang_passes::precision::widen::rounds_activations;
use std::collections::BTreeSet;
use std::time::Instant;

/// Every graph there may be, in the order in which they are read.
const GRAPHS: [&str; 6] =
    [files::MODEL, files::PREFILL, files::DECODE, files::PARALLEL, files::CHUNKED, files::SOFTMAX];

/// The files that a bundle cannot be compared without: its weights, and the graphs of its forms.
fn needed(manifest: &Manifest) -> Vec<String> {
    let lowered = manifest.sites.iter().any(|site| site.lowered);
    let forms: &[&str] = if lowered { &[files::PARALLEL, files::CHUNKED] } else { &[] };
    let own = [files::WEIGHTS, files::MODEL, files::SOFTMAX].iter().chain(forms);
    own.map(|file| (*file).to_owned()).chain(manifest.linked.iter().cloned()).collect()
}

impl Verifier<'_> {
    /// Returns the first file that is missing and that nothing can be compared without.
    pub(super) fn files(&mut self) -> Result<Option<String>, VerifyError> {
        self.stage("reading the graphs back");
        let needed = needed(self.manifest);
        // Bundles of earlier versions list nothing.
        let listed: BTreeSet<&String> =
            self.manifest.files.iter().map(|file| &file.name).chain(&needed).collect();
        let missing: Vec<&str> =
            listed.into_iter().filter(|file| !self.is_there(file)).map(String::as_str).collect();
        let row = Comparison::new("missing files", "the bundle", files::MANIFEST)
            .by(Measure::Count)
            .within(missing.len() as f64, 0.0);
        self.push(if missing.is_empty() { row } else { row.because(missing.join(", ")) });
        let lacking = needed.into_iter().find(|file| !self.is_there(file));
        // No graph can be read without its weights.
        if lacking.as_ref().is_some_and(|file| !GRAPHS.contains(&file.as_str())) {
            return Ok(lacking);
        }
        self.as_written();
        self.weights()?;
        for file in GRAPHS {
            if !self.is_there(file) {
                continue;
            }
            let graph = read_back(&self.bundle.join(file))?;
            self.well_formed(file, &graph);
            if file == files::MODEL {
                self.states(&graph);
                self.sizes(&graph)?;
            }
        }
        Ok(lacking)
    }

    pub(super) fn is_there(&self, file: &str) -> bool {
        self.bundle.join(file).exists()
    }

    /// Whatever else is listed is what was written.
    fn as_written(&mut self) {
        let row =
            Comparison::new("files that are not those dijiang.json names", "the bundle", files::MANIFEST)
                .by(Measure::Count);
        self.push(match differing(self.bundle, self.manifest) {
            None => row.skipped("an earlier version wrote the bundle, and recorded no digests"),
            Some(names) if names.is_empty() => row.within(0.0, 0.0),
            Some(names) => row.within(names.len() as f64, 0.0).because(names.join(", ")),
        });
    }

    /// The weights are those that were written.
    fn weights(&mut self) -> Result<(), VerifyError> {
        let comparison =
            Comparison::new("weights that are not those dijiang.json names", files::WEIGHTS, files::MANIFEST)
                .by(Measure::Count);
        self.push(match compare(self.bundle, self.manifest)? {
            Compared::Matches => comparison.within(0.0, 0.0),
            Compared::NotRecorded => {
                comparison.skipped("an earlier version wrote the bundle, and recorded no digest")
            }
            Compared::Differs(Difference::Tensors(names)) => {
                comparison.within(names.len() as f64, 0.0).because(names.join(", "))
            }
            Compared::Differs(Difference::Header) => {
                comparison.within(1.0, 0.0).because("the header is another")
            }
            Compared::Differs(Difference::File) => {
                comparison.within(1.0, 0.0).because("the file's digest is another")
            }
        });
        Ok(())
    }

    /// A graph file reads back, and breaks no rule of the IR.
    fn well_formed(&mut self, file: &str, graph: &Graph) {
        self.served.rounds |= graph.nodes().any(|(_, node)| rounds_activations(&node.op));
        let grouped = graph.nodes().any(|(_, node)| node.op.name() == "GroupQueryAttention");
        // Graphs of earlier versions do not bring the tokens of a row to its beginning.
        let fronts = graph.nodes().any(|(_, node)| node.name.starts_with(tokens_first::RULE));
        self.served.grouped |= grouped;
        self.served.counts |= grouped && !fronts;
        let name = format!("rules of graphs that {file} breaks");
        let comparison = Comparison::new(name, file, "the rules of graphs").by(Measure::Count);
        self.push(comparison.within(violations(graph).len() as f64, 0.0));
    }

    /// What the graph takes of rows, tokens and pictures, where it does not take any.
    fn sizes(&mut self, graph: &Graph) -> Result<(), VerifyError> {
        let fixed = Fixed::of(graph);
        let row = if graph.input(IDS).is_some() { "sequence" } else { "example" };
        let what = match fixed {
            Fixed { rows: Some(rows), .. } if rows != 1 => Some(counted(rows, row)),
            Fixed { tokens: Some(tokens), .. } if !self.stateless => Some(counted(tokens, "token")),
            _ => None,
        };
        if let Some(what) = what {
            let reason = format!(
                "it takes exactly {what} at a time, and a proof feeds it others too (hint: export the model with an open size there, or write it without a proof, with --no-verify)"
            );
            return Err(VerifyError::Model { file: files::MODEL.to_owned(), reason });
        }
        self.prompts = self.prompts.clone().fitted(fixed);
        if graph.input(MASK).is_none() && !self.stateless {
            self.prompts = self.prompts.clone().even();
        }
        self.pictures = Pictures::of(graph);
        Ok(())
    }

    /// Runners are told by the manifest what the graph carries from call to call.
    fn states(&mut self, graph: &Graph) {
        let found = states(graph);
        self.stateless = found.is_empty();
        let [found, named] =
            [&found, &self.manifest.state].map(|all| all.iter().map(told).collect::<BTreeSet<_>>());
        let apart = found.symmetric_difference(&named);
        let names: BTreeSet<&str> = apart.clone().map(|(name, ..)| *name).collect();
        let row = Comparison::new(
            "states in which dijiang.json and model.onnx differ",
            files::MODEL,
            files::MANIFEST,
        )
        .by(Measure::Count)
        .within(names.len() as f64, 0.0);
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        self.push(if row.ok { row } else { row.because(names) });
    }
}

/// A state by its name, type and known dims: open ones may be called otherwise when a graph is read back.
fn told(state: &State) -> (&str, &str, Vec<Option<u64>>) {
    let known = |extent: &Extent| match extent {
        Extent::Known(size) => Some(*size),
        Extent::Open(_) => None,
    };
    (&state.name, state.dtype.name(), state.shape.iter().map(known).collect())
}

impl Verifier<'_> {
    pub(super) fn push(&mut self, row: Check) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.found.checks.push(row.taking(seconds));
    }
}
