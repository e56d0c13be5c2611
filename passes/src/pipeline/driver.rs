//! The one driver of all pipelines.

use super::table::{PREPARE, passes};
use super::{Conversion, Pass, PassError};
use crate::ir::graph::Graph;
use crate::ir::patch::PatchError;
use crate::ir::verify::{Violation, verify};
use dijiang_format::target::Target;

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
    #[error("no pipeline makes {graph} for the target {target}, a bug of this compiler")]
    NoPipeline { graph: String, target: Target },
}

/// The passes that make a graph that bundles of every target have.
pub fn pipeline(graph: &str, target: Target) -> Result<&'static [&'static dyn Pass], PipelineError> {
    passes(graph, target).ok_or_else(|| PipelineError::NoPipeline { graph: graph.to_owned(), target })
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

#[cfg(test)]
mod tests {
    use super::super::{Property, table::PIPELINES};
    use super::*;
    use crate::attention::lower::grouped::OPERATOR;
    use crate::attention::rewrite::Report;
    use crate::canon::canonicalize;
    use crate::testing::{decoder, half_decoder};
    use dijiang_format::files;
    use dijiang_format::recipe::{Attention, Recipe};

    #[test]
    fn every_target_has_what_is_served_and_what_it_is_compared_with() {
        for target in Target::ALL {
            for graph in [files::MODEL, files::SOFTMAX, files::PARALLEL, files::CHUNKED] {
                assert!(
                    pipeline(graph, target).is_ok_and(|passes| !passes.is_empty()),
                    "{graph} for {target}"
                );
            }
        }
        let error = pipeline("other.onnx", Target::Ort).err().expect("no row");
        assert_eq!(
            error.to_string(),
            "no pipeline makes other.onnx for the target ort, a bug of this compiler"
        );
    }

    fn recipe(attention: Attention) -> Recipe {
        Recipe { attention, ..crate::testing::recipe() }
    }

    /// What is said to be canonical is: a further clean-up makes no patch.
    #[test]
    fn what_is_canonical_has_nothing_to_clean_up() {
        for source in [decoder(), half_decoder()] {
            for recipe in [recipe(Attention::Linear), recipe(Attention::Softmax)] {
                for row in PIPELINES {
                    check_canonical(source.clone(), row.passes, &recipe, row.graph);
                }
            }
        }
    }

    /// What differed by its element type alone is the same in f32.
    #[test]
    fn what_is_widened_has_nothing_to_clean_up() {
        let text = r#"graph "half" {
  input %x: f16[batch, 4]
  %y = Exp(%x)
  %wide = Cast(%x) {to: "f32"}
  %z = Exp(%wide)
  output "y" %y
  output "z" %z
}"#;
        let graph = crate::ir::text::parse(text).expect("a graph");
        let passes = pipeline(files::SOFTMAX, Target::Ort).expect("a row");
        check_canonical(graph, passes, &recipe(Attention::Linear), files::SOFTMAX);
    }

    fn check_canonical(mut graph: Graph, passes: &[&dyn Pass], recipe: &Recipe, row: &str) {
        let (name, mut holds) = (graph.name.clone(), false);
        let report = Report::default();
        let mut conversion = Conversion { recipe, seed: 1, layers: None, added: None, report };
        for pass in PREPARE.iter().chain(passes) {
            run(&mut graph, &[*pass], &mut conversion).expect("it runs");
            let named = |properties: &[Property]| properties.contains(&Property::Canonical);
            holds = named(pass.ensures()) || (holds && !named(pass.ends()));
            // The one operator that a source may spell too, and that clean-ups take apart.
            let grouped = graph.nodes().any(|(_, node)| node.op.name() == OPERATOR);
            if holds && !grouped {
                let patches = canonicalize(&mut graph.clone()).expect("it settles");
                assert_eq!(patches, 0, "{name} after {} of {row}", pass.name());
            }
        }
    }
}
