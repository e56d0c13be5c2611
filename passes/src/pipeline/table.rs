//! The pipelines, one row for each graph of a bundle and the targets that it has it for. All begin with the source as
//! [`PREPARE`] leaves it.

use super::Pass;
use super::passes::{
    Canonicalize, CutFeatures, ExpandInt4, Fuse, GroupSoftmax, JoinWeights, KeepLast, Linearize, NameNext,
    OneToken, PadStates, TakeLast, WeightsAsInputs, WideIntegers, Widen, Written,
};
use crate::fuse::Purpose;
use dijiang_format::files;
use dijiang_format::target::Target;

/// From a source as it was read to what every other pipeline begins with.
pub static PREPARE: &[&dyn Pass] = &[&Canonicalize];

/// From the served graph of a bundle to the one that decoding with memory of its own runs: made when a bundle of target
/// `ort` is opened.
pub static DECODED: &[&dyn Pass] = &[&WideIntegers, &TakeLast, &NameNext];
/// The same for a GPU, which has the fused operators in half precision too.
pub static DECODED_ON_GPU: &[&dyn Pass] = &[&WideIntegers, &TakeLast, &NameNext, &Fuse(Purpose::Decoded)];

const ORT: &[Target] = &[Target::Ort];
const PORTABLE: &[Target] = &[Target::Portable];
const ONNX27: &[Target] = &[Target::Onnx27];
const EVERY: &[Target] = &Target::ALL;

/// How a graph of a bundle comes to be.
#[expect(missing_debug_implementations, reason = "its passes have names")]
#[derive(Clone, Copy)]
pub struct Pipeline {
    /// The file of the graph.
    pub graph: &'static str,
    pub targets: &'static [Target],
    pub passes: &'static [&'static dyn Pass],
}

/// Every pipeline.
pub static PIPELINES: &[Pipeline] = &[
    // What is served.
    Pipeline {
        graph: files::MODEL,
        targets: ORT,
        passes: &[&Linearize(Written::OrtOperator), &Canonicalize, &GroupSoftmax, &Fuse(Purpose::Served)],
    },
    Pipeline {
        graph: files::MODEL,
        targets: PORTABLE,
        passes: &[&Linearize(Written::Chunked), &Canonicalize],
    },
    Pipeline {
        graph: files::MODEL,
        targets: ONNX27,
        passes: &[&Linearize(Written::Operator), &Canonicalize],
    },
    // The same for memory that is bound once, in segments of a prompt and token by token.
    Pipeline {
        graph: files::PREFILL,
        targets: ORT,
        passes: &[
            &Linearize(Written::Segments),
            &Canonicalize,
            &Fuse(Purpose::ManyTokens),
            &PadStates,
            &KeepLast,
            &WideIntegers,
            &NameNext,
            &JoinWeights,
            &WeightsAsInputs,
        ],
    },
    Pipeline {
        graph: files::DECODE,
        targets: ORT,
        passes: &[
            &Linearize(Written::OneToken),
            &Canonicalize,
            &OneToken,
            &Canonicalize,
            &Fuse(Purpose::OneToken),
            &PadStates,
            &CutFeatures,
            &WideIntegers,
            &NameNext,
            &JoinWeights,
            &WeightsAsInputs,
        ],
    },
    // What the served graph is compared with: standard operators and f32, whatever the weights are stored in.
    Pipeline { graph: files::SOFTMAX, targets: EVERY, passes: &[&Widen, &ExpandInt4] },
    Pipeline {
        graph: files::PARALLEL,
        targets: EVERY,
        passes: &[&Widen, &Linearize(Written::Parallel), &Canonicalize, &ExpandInt4],
    },
    Pipeline {
        graph: files::CHUNKED,
        targets: EVERY,
        passes: &[&Widen, &Linearize(Written::Chunked), &Canonicalize, &ExpandInt4],
    },
];

/// The passes that make a graph of a bundle for a target; `None` where its bundles have no such graph.
pub fn passes(graph: &str, target: Target) -> Option<&'static [&'static dyn Pass]> {
    let row = PIPELINES.iter().find(|row| row.graph == graph && row.targets.contains(&target));
    row.map(|row| row.passes)
}

#[cfg(test)]
mod tests {
    use super::super::Property;
    use super::*;
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    /// What a source brings along.
    const SOURCE: [Property; 1] = [Property::Weights];

    /// What holds of a graph before the first of `passes` and after each of them, or what a pass would lack.
    fn properties(passes: &[&dyn Pass]) -> Result<Vec<BTreeSet<Property>>, (&'static str, Property)> {
        let mut all = vec![BTreeSet::from(SOURCE)];
        for pass in passes {
            let mut now = all.last().cloned().unwrap_or_default();
            if let Some(lacks) = pass.needs().iter().find(|property| !now.contains(property)) {
                return Err((pass.name(), *lacks));
            }
            now.retain(|property| !pass.ends().contains(property));
            now.extend(pass.ensures());
            all.push(now);
        }
        Ok(all)
    }

    /// Every pipeline with what holds of the graph after each pass; a pass that lacked something would fail here.
    #[test]
    fn every_pass_has_what_it_needs() {
        let mut text = String::new();
        let prepare = Pipeline { graph: "source", targets: EVERY, passes: PREPARE };
        // What a bundle's served graph holds when it is read.
        let decoded =
            [("model.onnx opened on a CPU", DECODED), ("model.onnx opened on a GPU", DECODED_ON_GPU)];
        let decoded = decoded.map(|(graph, passes)| Pipeline { graph, targets: ORT, passes });
        for row in std::iter::once(&prepare).chain(PIPELINES).chain(&decoded) {
            let targets: Vec<&str> = row.targets.iter().map(|target| target.name()).collect();
            let _ = writeln!(text, "{} ({})", row.graph, targets.join(", "));
            let served = PIPELINES[0].passes;
            let first = match row.graph {
                "source" => Vec::new(),
                _ if row.graph.starts_with("model.onnx opened") => {
                    PREPARE.iter().chain(served).copied().collect()
                }
                _ => PREPARE.to_vec(),
            };
            let all: Vec<&dyn Pass> = first.iter().chain(row.passes).copied().collect();
            let holds = properties(&all).expect("what each pass needs");
            for (pass, holds) in all.iter().zip(&holds[1..]).skip(first.len()) {
                let holds: Vec<String> = holds.iter().map(Property::to_string).collect();
                let _ = writeln!(text, "  {:<18} {}", pass.name(), holds.join(", "));
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_pass_that_lacks_something_is_named() {
        let found = properties(&[&Linearize(Written::Chunked)]);
        assert_eq!(found.expect_err("it lacks something"), ("linearize", Property::Canonical));
    }

    #[test]
    fn no_graph_has_two_pipelines_for_a_target() {
        for target in EVERY {
            for row in PIPELINES.iter().filter(|row| row.targets.contains(target)) {
                let same = PIPELINES.iter().filter(|r| r.graph == row.graph && r.targets.contains(target));
                assert_eq!(same.count(), 1, "{} for {target}", row.graph);
            }
        }
    }
}
