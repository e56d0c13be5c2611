//! The one driver of all pipelines.

use super::table::PREPARE;
use super::{Conversion, Pass, PassError};
use crate::ir::graph::Graph;
use crate::ir::patch::PatchError;
use crate::ir::verify::{Violation, verify};

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassRun {
    pub pass: &'static str,
    pub patches: usize,
    /// Nodes of the graph afterwards.
    pub nodes: usize,
}

/// A pipeline could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error("after {pass} the graph is not well-formed, a bug of this compiler: {first}{more}")]
    Malformed { pass: &'static str, first: Box<Violation>, more: String },
}

/// Cleans up a source as it was read.
pub fn prepare(graph: &mut Graph, conversion: &mut Conversion<'_>) -> Result<Vec<PassRun>, PipelineError> {
    check(graph, "reading the source")?;
    run(graph, PREPARE, conversion)
}

/// Runs passes one after the other, and verifies the graph after each. A graph that is
/// [stopped](Graph::stop_after) on the way is left as it is then.
pub fn run(
    graph: &mut Graph,
    passes: &[&dyn Pass],
    conversion: &mut Conversion<'_>,
) -> Result<Vec<PassRun>, PipelineError> {
    let mut runs = Vec::new();
    for pass in passes {
        let before = graph.patches();
        let ran = pass.run(graph, conversion);
        // A pass that writes its graph anew leaves the one it was given, which then does not know.
        let stopped = graph.is_stopped() || matches!(ran, Err(PassError::Patch(PatchError::Stopped { .. })));
        match stopped {
            true => graph.refresh_types().map_err(PassError::from)?,
            false => ran?,
        }
        check(graph, pass.name())?;
        let patches = graph.patches() - before;
        runs.push(PassRun { pass: pass.name(), patches, nodes: graph.nodes().count() });
        if stopped {
            break;
        }
    }
    Ok(runs)
}

fn check(graph: &Graph, pass: &'static str) -> Result<(), PipelineError> {
    let mut violations = verify(graph).into_iter();
    let Some(first) = violations.next() else { return Ok(()) };
    let more = match violations.count() {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    Err(PipelineError::Malformed { pass, first: Box::new(first), more })
}
