//! What the manifest says of the bundle's files: that they are there, and are what it says.

use super::table::{Check, Comparison, Measure};
use super::{Verifier, VerifyError};
use crate::bundle::layout;
use crate::bundle::manifest::{Extent, Manifest, SourceFile, State};
use crate::convert::states;
use crate::onnx::import::import;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::verify::verify as violations;
use dijiang_passes::widen::rounds_activations;
use std::collections::BTreeSet;

/// Every graph there may be, in the order in which they are read.
const GRAPHS: [&str; 6] =
    [layout::MODEL, layout::PREFILL, layout::DECODE, layout::PARALLEL, layout::CHUNKED, layout::SOFTMAX];

/// The files that a bundle cannot be compared without: its weights, and the graphs of its forms.
fn needed(manifest: &Manifest) -> Vec<String> {
    let lowered = manifest.sites.iter().any(|site| site.lowered);
    let forms: &[&str] = if lowered { &[layout::PARALLEL, layout::CHUNKED] } else { &[] };
    let own = [layout::WEIGHTS, layout::MODEL, layout::SOFTMAX].iter().chain(forms);
    own.map(|file| (*file).to_owned()).chain(manifest.linked.iter().cloned()).collect()
}

impl Verifier<'_> {
    /// Returns the first file that is missing and that nothing can be compared without.
    pub(super) fn files(&mut self) -> Result<Option<String>, VerifyError> {
        self.stage("reading the graphs back");
        let needed = needed(self.manifest);
        // Bundles of earlier versions list nothing.
        let listed: BTreeSet<&String> = self.manifest.files.iter().chain(&needed).collect();
        let missing: Vec<&str> =
            listed.into_iter().filter(|file| !self.is_there(file)).map(String::as_str).collect();
        let row = Comparison::new("files that are missing", "the bundle", layout::MANIFEST)
            .by(Measure::Count)
            .within(missing.len() as f64, 0.0);
        self.push(if missing.is_empty() { row } else { row.because(missing.join(", ")) });
        let lacking = needed.into_iter().find(|file| !self.is_there(file));
        // No graph can be read without its weights.
        if lacking.as_ref().is_some_and(|file| !GRAPHS.contains(&file.as_str())) {
            return Ok(lacking);
        }
        self.weights()?;
        for file in GRAPHS {
            if !self.is_there(file) {
                continue;
            }
            let graph = import(&self.bundle.join(file))?;
            self.well_formed(file, &graph);
            if file == layout::MODEL {
                self.states(&graph);
            }
        }
        Ok(lacking)
    }

    pub(super) fn is_there(&self, file: &str) -> bool {
        self.bundle.join(file).exists()
    }

    /// The weights are those that the manifest names, where it names any.
    fn weights(&mut self) -> Result<(), VerifyError> {
        let Some(named) = &self.manifest.trained else { return Ok(()) };
        let comparison =
            Comparison::new("weights are those that dijiang.json names", layout::WEIGHTS, layout::MANIFEST)
                .by(Measure::Count);
        if self.manifest.weights.is_some() {
            let reason = "it names those from which these were quantised";
            self.push(comparison.skipped(reason));
            return Ok(());
        }
        let found = SourceFile::describe_whole(&self.bundle.join(layout::WEIGHTS))?;
        let same = found.sha256 == named.sha256;
        let row = comparison.within(f64::from(u8::from(!same)), 0.0);
        self.push(if same { row } else { row.because("their digest is another") });
        Ok(())
    }

    /// A graph file reads back, and breaks no rule of the IR.
    fn well_formed(&mut self, file: &str, graph: &Graph) {
        self.rounds |= graph.nodes().any(|(_, node)| rounds_activations(&node.op));
        self.counts |= graph.nodes().any(|(_, node)| node.op.name() == "GroupQueryAttention");
        let name = format!("{file} is well-formed: violations");
        let comparison = Comparison::new(name, file, "the rules of graphs").by(Measure::Count);
        self.push(comparison.within(violations(graph).len() as f64, 0.0));
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
            layout::MODEL,
            layout::MANIFEST,
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
    (&state.name, &state.dtype, state.shape.iter().map(known).collect())
}

impl Verifier<'_> {
    pub(super) fn push(&mut self, row: Check) {
        self.found.checks.push(row);
    }
}
