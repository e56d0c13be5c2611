//! Exact clean-ups, one rule per file. Each sweep of a rule is one patch; rules run in the order of the
//! table until nothing changes.

use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, Patch, PatchError};
use crate::pattern::{Match, Pat, matches};
use std::collections::BTreeMap;

mod bounded_dim;
mod cast_cast;
mod common_subexpression;
mod constant_fold;
mod expand_attention;
mod expand_einsum;
mod expand_gelu;
mod expand_gemm;
mod expand_grouped_attention;
mod expand_norm;
mod expand_rotary;
mod expand_target;
mod finite_weights;
mod flat_matmul;
mod flatten;
mod folded_heads;
mod grouped_heads;
mod head_scales;
mod heads_beside_rows;
mod heads_in_rows;
mod input_dims;
mod key_transpose;
mod negated_term;
mod no_op;
mod repeated_heads;
mod reshape_reshape;
mod reshape_target;
mod reshape_transpose_reshape;
mod scale_products;
mod scale_scale;
mod shape_values;
mod slice_bounds;
mod table_rows;
mod terms;
mod transpose_transpose;
mod transposed_product;
mod unsqueeze_unsqueeze;
mod written_softmax;

/// An exact rewrite: what it leaves computes the same numbers.
pub trait GraphRule: Sync {
    /// The file's name.
    fn name(&self) -> &'static str;

    /// One sweep over the graph; `None` where there was nothing to do.
    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError>;
}

/// All rules, in the order they run.
pub static RULES: &[&dyn GraphRule] = &[
    &input_dims::InputDims,
    &expand_attention::ExpandAttention,
    &expand_grouped_attention::ExpandGroupedAttention,
    &expand_einsum::ExpandEinsum,
    &expand_gemm::ExpandGemm,
    &expand_gelu::ExpandGelu,
    &heads_in_rows::HeadsInRows,
    &expand_norm::ExpandNorm,
    &expand_rotary::ExpandRotary,
    &no_op::NoOp,
    &constant_fold::ConstantFold,
    &shape_values::ShapeValues,
    &negated_term::NegatedTerm,
    &bounded_dim::BoundedDim,
    &flatten::Flatten,
    &reshape_target::ReshapeTarget,
    &expand_target::ExpandTarget,
    &slice_bounds::SliceBounds,
    &table_rows::TableRows,
    &cast_cast::CastCast,
    &unsqueeze_unsqueeze::UnsqueezeUnsqueeze,
    &reshape_transpose_reshape::ReshapeTransposeReshape,
    &written_softmax::WrittenSoftmax,
    &finite_weights::FiniteWeights,
    &repeated_heads::RepeatedHeads,
    &transposed_product::TransposedProduct,
    &key_transpose::KeyTranspose,
    &transpose_transpose::TransposeTranspose,
    &flat_matmul::FlatMatMul,
    &heads_beside_rows::HeadsBesideRows,
    &folded_heads::FoldedHeads,
    &grouped_heads::GroupedHeads,
    &head_scales::HeadScales,
    &scale_products::ScaleProducts,
    &scale_scale::ScaleScale,
    &reshape_reshape::ReshapeReshape,
    &common_subexpression::CommonSubexpression,
];

/// One sweep of a rule that rewrites single nodes, producers before their users.
pub(crate) struct Sweep<'g> {
    pub(crate) patch: Patch<'g>,
    pub(crate) graph: &'g Graph,
    /// What stands for the outputs rewritten so far.
    new: BTreeMap<ValueId, ValueId>,
}

impl Sweep<'_> {
    /// An input as it will be read after the sweep.
    pub(crate) fn input(&self, node: &Node, slot: usize) -> Option<ValueId> {
        node.input(slot).map(|v| self.current(v))
    }

    pub(crate) fn current(&self, value: ValueId) -> ValueId {
        self.new.get(&value).copied().unwrap_or(value)
    }

    /// Whether this sweep has left a value of the graph alone, so that what makes it can be looked at.
    pub(crate) fn is_untouched(&self, value: ValueId) -> bool {
        !self.new.contains_key(&value)
    }

    /// Lets a new value stand for one that another node made.
    pub(crate) fn stand_for(&mut self, old: ValueId, new: ValueId) {
        self.patch.replace(old, new);
        self.new.insert(old, new);
    }
}

/// Lets `rewrite` look at every node. What it returns stands for the node's leading outputs; where it
/// returns `None`, what it wrote is dropped.
pub(crate) fn rewrite_nodes(
    graph: &mut Graph,
    rule: &'static str,
    mut rewrite: impl FnMut(&mut Sweep<'_>, &Node) -> Option<Vec<ValueId>>,
) -> Result<Option<Applied>, PatchError> {
    let mut sweep = Sweep { patch: Patch::new(graph, rule), graph, new: BTreeMap::new() };
    for id in sweep.graph.order() {
        let node = sweep.graph.node(id);
        sweep.patch.name_after(node);
        let Some(outputs) = rewrite(&mut sweep, node) else { continue };
        for (old, new) in node.outputs.iter().zip(outputs).filter(|(old, new)| *old != new) {
            sweep.stand_for(*old, new);
        }
    }
    if sweep.new.is_empty() {
        return Ok(None);
    }
    let change = sweep.patch.finish();
    graph.apply(change).map(Some)
}

/// The same for every node whose first output a pattern matches.
pub(crate) fn rewrite_matches(
    graph: &mut Graph,
    rule: &'static str,
    pattern: &Pat,
    mut rewrite: impl FnMut(&mut Sweep<'_>, &Match) -> Option<Vec<ValueId>>,
) -> Result<Option<Applied>, PatchError> {
    rewrite_nodes(graph, rule, |w, node| {
        let found = matches(w.graph, pattern, *node.outputs.first()?)?;
        rewrite(w, &found)
    })
}

/// Rounds over all rules after which a graph must have settled.
const MAX_ROUNDS: usize = 64;

/// The rules do not come to an end, or one of them is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CanonError {
    #[error("the clean-ups did not settle in {MAX_ROUNDS} rounds; these still change the graph: {rules}")]
    Unsettled { rules: String },
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// Applies all rules until none changes the graph. Returns the number of patches.
pub fn canonicalize(graph: &mut Graph) -> Result<usize, CanonError> {
    let mut patches = 0;
    let mut changed = Vec::new();
    for _ in 0..MAX_ROUNDS {
        changed.clear();
        graph.refresh_types()?;
        for rule in RULES {
            if rule.sweep(graph)?.is_some() {
                changed.push(rule.name());
                patches += 1;
            }
        }
        if changed.is_empty() {
            return Ok(patches);
        }
    }
    Err(CanonError::Unsettled { rules: changed.join(", ") })
}

#[cfg(test)]
mod tests;
