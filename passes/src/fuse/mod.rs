//! Plain operators become the fused ones that ONNX Runtime computes in one kernel: the clean-ups of `canon` the other
//! way round. This is done to serving graphs of ONNX Runtime alone, and last: no other pass knows these operators.
//!
//! A fusion of a tree of operators says which by a [pattern](crate::pattern), and checks the rest itself. Those that
//! follow a value to its users, gather any number of nodes or compare polynomials walk by hand.

use crate::canon::{GraphRule, Sweep};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::PatchError;

mod bias_gelu;
pub mod constant_factor;
mod early_cast;
mod early_sigmoid;
mod gelu;
mod head_parts;
mod head_rows;
mod joined_features;
mod joined_products;
mod joined_shares;
mod log_sigmoid;
mod partial_rotary;
mod rms_norm;
mod rotary;
mod rows_together;
mod shifted_norm;
mod silu;
mod skip_norm;
mod unit_transpose;

/// All fusions, in the order they run, once each.
pub static FUSIONS: &[&dyn GraphRule] = &[
    &unit_transpose::UnitTranspose,
    &rms_norm::RmsNorm,
    &gelu::Gelu,
    &bias_gelu::BiasGelu,
    &silu::Silu,
    &log_sigmoid::LogSigmoid,
    &early_sigmoid::EarlySigmoid,
    &rotary::Rotary,
    &partial_rotary::PartialRotary,
    &head_parts::HeadParts,
    &head_rows::HeadRows,
    &joined_products::JoinedProducts,
    &joined_shares::JoinedShares,
    &early_cast::EarlyCast,
    &joined_features::JoinedFeatures,
    &rows_together::RowsTogether,
    &shifted_norm::ShiftedNorm,
    &skip_norm::SkipNorm,
];

/// Fuses what can be fused. Returns the number of patches.
pub fn fuse(graph: &mut Graph) -> Result<usize, PatchError> {
    sweep(graph, FUSIONS.iter().copied())
}

/// The same for a graph that is given many tokens at a time: a product of many rows is as fast as its parts, which
/// then need no split.
pub fn fuse_for_many(graph: &mut Graph) -> Result<usize, PatchError> {
    let joins = joined_products::JoinedProducts.name();
    sweep(graph, FUSIONS.iter().copied().filter(|rule| rule.name() != joins))
}

/// The parts of `x`, cut as `split` cuts.
fn cut_alike(w: &mut Sweep<'_>, split: &Node, x: ValueId) -> Vec<ValueId> {
    let sizes = w.input(split, 1).map(Some);
    let inputs: Vec<Option<ValueId>> = [Some(x)].into_iter().chain(sizes).collect();
    w.patch.node_outputs(split.op.clone(), &inputs, split.outputs.len())
}

fn sweep(
    graph: &mut Graph,
    rules: impl Iterator<Item = &'static dyn GraphRule>,
) -> Result<usize, PatchError> {
    let mut patches = 0;
    for rule in rules {
        patches += usize::from(rule.sweep(graph)?.is_some());
    }
    graph.refresh_types()?;
    Ok(patches)
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
        let all = FUSIONS.iter().copied().chain([&constant_factor::ConstantFactor as &dyn GraphRule]);
        let mut names: Vec<&str> = all.map(GraphRule::name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}
