//! Which softmaxes are attention, however they are spelled: a product of two computed values goes in, and
//! what comes out weighs a third. The softmax of a classifier or of a router of experts reads a product with a weight.

use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::walk::{ValueSet, computed, nearest_first};

/// Values that depend on what the graph is given.
pub(super) struct Computed(ValueSet);

impl Computed {
    pub(super) fn of(graph: &Graph) -> Self {
        Self(computed(graph))
    }

    pub(super) fn is_attention(&self, graph: &Graph, softmax: NodeId) -> bool {
        let node = graph.node(softmax);
        node.input(0).is_some_and(|scores| self.is_scored(graph, scores))
            && self.weighs(graph, node.outputs[0])
    }

    fn is_scored(&self, graph: &Graph, scores: ValueId) -> bool {
        let before = |value: ValueId| graph.producer(value).map(|(id, _)| id).into_iter().collect();
        self.meets_product(graph, scores, before, |node| node.inputs.iter().flatten().copied().collect())
    }

    fn weighs(&self, graph: &Graph, probabilities: ValueId) -> bool {
        let users = |value: ValueId| {
            let uses = graph.value(value).uses.iter();
            let node = |user: &Use| match user {
                Use::Node { node, .. } => Some(*node),
                Use::GraphOutput(_) => None,
            };
            uses.filter_map(node).collect()
        };
        self.meets_product(graph, probabilities, users, |node| node.outputs.clone())
    }

    /// Whether a few steps one way from `value`, by operators that move, scale or mask, there is a product
    /// of computed values.
    fn meets_product(
        &self,
        graph: &Graph,
        value: ValueId,
        nodes: impl Fn(ValueId) -> Vec<NodeId>,
        onwards: impl Fn(&Node) -> Vec<ValueId>,
    ) -> bool {
        let nodes =
            |value: ValueId| -> Vec<&Node> { nodes(value).into_iter().map(|id| graph.node(id)).collect() };
        let next = |value: ValueId| -> Vec<ValueId> {
            let between = nodes(value).into_iter().filter(|node| BETWEEN.contains(&node.op.name()));
            between.flat_map(&onwards).collect()
        };
        let of_computed = |node: &&Node| {
            let computed = node.inputs.iter().flatten().filter(|v| self.0.contains(**v));
            PRODUCTS.contains(&node.op.name()) && computed.count() > 1
        };
        nearest_first(value, MAX_STEPS, next).any(|value| nodes(value).iter().any(of_computed))
    }
}

const PRODUCTS: [&str; 4] = ["MatMul", "Gemm", "Einsum", "FusedMatMul"];

/// Operators that may stand between a product and the softmax, on either side.
const BETWEEN: [&str; 22] = [
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Expand",
    "Identity",
    "IsNaN",
    "Max",
    "Min",
    "Mul",
    "QuantizeLinear",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// As many of them as exporters write at most.
const MAX_STEPS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// Whether the softmax over `%scores` is attention, where `%y` is what is done with its `%weights`.
    fn is_attention(scores: &str, y: &str) -> bool {
        let graph = parse(&format!(
            "graph \"g\" {{
  input %x: f32[2, 4]
  weight %w: f32[4, 4] = random(1)
  const %c: f32[] = [0.5]
  %k = Transpose(%x) {{perm: [1, 0]}}
{scores}
  %weights = Softmax(%scores)
{y}
  output \"y\" %y
}}"
        ));
        let graph = graph.expect("it parses");
        let softmax = graph.nodes().find(|(_, n)| n.op.is("Softmax")).expect("a softmax").0;
        Computed::of(&graph).is_attention(&graph, softmax)
    }

    const SCORES: &str = "  %qk = MatMul(%x, %k)\n  %scores = Mul(%qk, %c)";
    const LOGITS: &str = "  %logits = MatMul(%x, %w)\n  %scores = Mul(%logits, %c)";

    #[test]
    fn attention_however_it_is_spelled() {
        assert!(is_attention(SCORES, "  %y = MatMul(%weights, %x)"));
        let spread = "  %kept = Dropout(%weights)\n  %y = Einsum(%kept, %x) {equation: \"ij,jk->ik\"}";
        assert!(is_attention(SCORES, spread));
        let rounded =
            "  %q = QuantizeLinear(%weights, %c)\n  %d = DequantizeLinear(%q, %c)\n  %y = MatMul(%d, %x)";
        assert!(is_attention(SCORES, rounded));
    }

    #[test]
    fn classifiers_and_routers_are_none() {
        assert!(!is_attention(LOGITS, "  %y = Identity(%weights)"));
        // A router's weights may multiply what the experts give.
        let routed = "  %transposed = Transpose(%weights) {perm: [1, 0]}\n  %y = MatMul(%transposed, %x)";
        assert!(!is_attention(LOGITS, routed));
        // Similarities of texts and images, which weigh nothing.
        assert!(!is_attention(SCORES, "  %y = Identity(%weights)"));
    }
}
