//! Plain operators become the fused ones that ONNX Runtime computes in one kernel: the clean-ups of `canon` the other
//! way round. This is done to serving graphs of ONNX Runtime alone, and last: no other pass knows these operators.
//!
//! A fusion of a tree of operators says which by a [pattern](crate::pattern), and checks the rest itself. Those that
//! follow a value to its users, gather any number of nodes or compare polynomials walk by hand.

use crate::canon::{GraphRule, Sweep};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::PatchError;

mod attention_gate;
mod bias_gelu;
pub mod constant_factor;
mod early_cast;
mod early_sigmoid;
mod folded_shares;
mod gelu;
mod head_parts;
mod head_rows;
mod joined_features;
mod joined_outputs;
mod joined_products;
mod joined_rotations;
mod joined_shares;
mod log_sigmoid;
mod partial_rotary;
mod rms_norm;
mod rotary;
mod rows_together;
mod shared_norm;
mod shifted_norm;
mod silu;
mod skip_norm;
mod split_again;
mod stored_product;
mod unit_transpose;
mod wide_product;
mod wide_ring;

/// What a graph is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serving with its own weights.
    Served,
    /// Bound memory, many tokens at a time.
    ManyTokens,
    /// Bound memory, one token at a time.
    OneToken,
    /// Decoding by a served graph that was read again.
    Decoded,
}

/// Which graphs a fusion is for.
#[derive(Clone, Copy, Debug)]
enum Graphs {
    All,
    /// A product of many rows is as fast as its parts, which then need no split.
    FewTokens,
    /// Weights are computed as they load.
    Bound,
    OneToken,
}

impl Graphs {
    fn have(self, purpose: Purpose) -> bool {
        match self {
            Self::All => true,
            Self::FewTokens => purpose != Purpose::ManyTokens,
            Self::Bound => matches!(purpose, Purpose::ManyTokens | Purpose::OneToken),
            Self::OneToken => purpose == Purpose::OneToken,
        }
    }
}

/// All fusions, in the order they run, once each, and the graphs they are for.
static FUSIONS: &[(&dyn GraphRule, Graphs)] = &[
    (&unit_transpose::UnitTranspose, Graphs::All),
    (&rms_norm::RmsNorm, Graphs::All),
    (&silu::Silu, Graphs::All),
    (&attention_gate::AttentionGate, Graphs::OneToken),
    (&log_sigmoid::LogSigmoid, Graphs::All),
    (&early_sigmoid::EarlySigmoid, Graphs::All),
    (&rotary::Rotary, Graphs::All),
    (&partial_rotary::PartialRotary, Graphs::All),
    (&head_parts::HeadParts, Graphs::All),
    (&head_rows::HeadRows, Graphs::All),
    (&shared_norm::SharedNorm, Graphs::Bound),
    (&folded_shares::FoldedShares, Graphs::Bound),
    (&joined_outputs::JoinedOutputs, Graphs::Bound),
    (&gelu::Gelu, Graphs::All),
    (&bias_gelu::BiasGelu, Graphs::All),
    (&joined_products::JoinedProducts, Graphs::FewTokens),
    (&joined_rotations::JoinedRotations, Graphs::OneToken),
    (&wide_product::WideProduct, Graphs::OneToken),
    (&joined_shares::JoinedShares, Graphs::All),
    (&early_cast::EarlyCast, Graphs::All),
    (&joined_features::JoinedFeatures, Graphs::All),
    (&split_again::SplitAgain, Graphs::OneToken),
    (&rows_together::RowsTogether, Graphs::All),
    (&shifted_norm::ShiftedNorm, Graphs::All),
    (&skip_norm::SkipNorm, Graphs::All),
    (&wide_ring::WideRing, Graphs::OneToken),
];

/// Fuses what can be fused. Returns the number of patches.
pub fn fuse(graph: &mut Graph, purpose: Purpose) -> Result<usize, PatchError> {
    let mut patches = 0;
    for (rule, _) in FUSIONS.iter().filter(|(_, graphs)| graphs.have(purpose)) {
        patches += usize::from(rule.sweep(graph)?.is_some());
    }
    graph.refresh_types()?;
    Ok(patches)
}

/// The parts of `x`, cut as `split` cuts.
fn cut_alike(w: &mut Sweep<'_>, split: &Node, x: ValueId) -> Vec<ValueId> {
    let sizes = w.input(split, 1).map(Some);
    let inputs: Vec<Option<ValueId>> = [Some(x)].into_iter().chain(sizes).collect();
    w.patch.node_outputs(split.op.clone(), &inputs, split.outputs.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, relative_error, run};

    /// The text after one fusion, which must compute the same.
    pub(super) fn after(rule: &dyn GraphRule, text: &str, inputs: &[(&str, &[usize])]) -> String {
        let before = parse(text).expect("a graph");
        let mut graph = parse(text).expect("a graph");
        rule.sweep(&mut graph).expect("a patch");
        let seeded = inputs.iter().zip(1..);
        let inputs: Vec<_> = seeded.map(|((name, dims), seed)| (*name, noise(dims, seed))).collect();
        let (found, expected) = (run(&graph, &inputs), run(&before, &inputs));
        for (name, value) in &expected {
            let error = relative_error(&found[name], value);
            // Both in f64; the attribute ε is an f32.
            assert!(error < 1e-7, "{name}: {error:e}");
        }
        print(&graph)
    }

    #[test]
    fn every_file_is_in_the_table() {
        let files = crate::testing::file_stems("src/fuse");
        let rules = FUSIONS.iter().map(|(rule, _)| *rule);
        let all = rules.chain([&constant_factor::ConstantFactor as &dyn GraphRule]);
        // What several of them look for is no rule.
        let mut names: Vec<&str> = all.map(GraphRule::name).chain(["stored_product"]).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}
