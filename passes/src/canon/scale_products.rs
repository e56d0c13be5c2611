//! Matches: `MatMul(a, b)` on its way into a softmax, where a or b is scaled by a constant before it is
//! reshaped, transposed or sliced
//! Becomes: `Mul(MatMul(a', b'), c)`: every constant factor of the scores in one place
//! Exact: up to rounding (a product rounds as its factors do, in another order)
//! Declines when: a factor is a weight, as in a feature map, where the scale is cheaper before

use super::scale_scale::scaled;
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::walk::nearest_first;

pub(super) struct ScaleProducts;

/// Operators that may stand between the products and the softmax.
const TO_SOFTMAX: [&str; 8] = ["Add", "Sub", "Mul", "Div", "Where", "Max", "Cast", "Reshape"];

/// Most nodes on that way, and between the scale and the products.
const MAX_STEPS: usize = 6;

/// Operators that commute with a constant factor.
const LAYOUT: [&str; 5] = ["Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice"];

impl GraphRule for ScaleProducts {
    fn name(&self) -> &'static str {
        "scale_products"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if !node.op.is("MatMul") || !reaches_softmax(w.graph, node.outputs[0]) {
                return None;
            }
            let (a, b) = (node.input(0)?, node.input(1)?);
            let found = [a, b].map(|v| has_factor(w.graph, v, MAX_STEPS));
            if found == [false, false] || is_constant(w.graph, a) || is_constant(w.graph, b) {
                return None;
            }
            let [(a, c), (b, d)] = [a, b].map(|v| peel(w, v, MAX_STEPS));
            let products = w.patch.matmul(a, b);
            Some(vec![w.patch.mul_scalar(products, c * d)])
        })
    }
}

fn reaches_softmax(graph: &Graph, value: ValueId) -> bool {
    let users = |v: ValueId| {
        let nodes = graph.value(v).uses.iter().filter_map(|user| match user {
            Use::Node { node, .. } => Some(graph.node(*node)),
            Use::GraphOutput(_) => None,
        });
        nodes.collect::<Vec<&Node>>()
    };
    let passes = |node: &&Node| node.op.domain().is_empty() && TO_SOFTMAX.contains(&node.op.name());
    let next = |v: ValueId| users(v).into_iter().filter(passes).map(|node| node.outputs[0]).collect();
    nearest_first(value, MAX_STEPS, next).any(|v| users(v).iter().any(|node| node.op.is("Softmax")))
}

fn layout(graph: &Graph, value: ValueId) -> Option<&Node> {
    let node = graph.node(graph.producer(value)?.0);
    (node.op.domain().is_empty() && LAYOUT.contains(&node.op.name())).then_some(node)
}

/// Whether a value is a constant, or one that is only laid out anew.
fn is_constant(graph: &Graph, value: ValueId) -> bool {
    let below = || layout(graph, value).and_then(|n| n.input(0));
    graph.as_const(value).is_some() || below().is_some_and(|v| is_constant(graph, v))
}

fn scale_at(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    scaled(graph, graph.node(graph.producer(value)?.0))
}

fn has_factor(graph: &Graph, value: ValueId, steps: usize) -> bool {
    let below = || layout(graph, value).and_then(|n| n.input(0)).filter(|_| steps > 0);
    scale_at(graph, value).is_some() || below().is_some_and(|v| has_factor(graph, v, steps - 1))
}

/// A value without its constant factor, and the factor.
fn peel(w: &mut Sweep<'_>, value: ValueId, steps: usize) -> (ValueId, f64) {
    if !has_factor(w.graph, value, steps) || !w.is_untouched(value) {
        return (w.current(value), 1.0);
    }
    if let Some((x, c)) = scale_at(w.graph, value) {
        let (x, rest) = peel(w, x, steps.saturating_sub(1));
        return (x, c * rest);
    }
    let Some((node, x)) = layout(w.graph, value).and_then(|n| Some((n, n.input(0)?))) else {
        return (w.current(value), 1.0);
    };
    let (x, c) = peel(w, x, steps.saturating_sub(1));
    let rest = (1..node.inputs.len()).map(|slot| w.input(node, slot));
    let inputs: Vec<Option<ValueId>> = std::iter::once(Some(x)).chain(rest).collect();
    (w.patch.node_outputs(node.op.clone(), &inputs, 1)[0], c)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_close};

    const SCALED: &str = r#"graph "g" {
  input %q: f32[batch, time, 8]
  input %k: f32[batch, 2, 4, time]
  input %gate: f32[batch, time, 8]
  const %eighth: f32[] = [0.125]
  const %two: f32[1] = [2.0]
  const %heads: i64[4] = [0, 0, 2, 4]
  weight %w: f32[8, 3] = random(1)
  %a = Mul(%q, %eighth)
  %b = Reshape(%a, %heads)
  %c = Transpose(%b) {perm: [0, 2, 1, 3]}
  %d = Div(%k, %two)
  %s = MatMul(%c, %d)
  %p = Softmax(%s)
  %e = Mul(%q, %gate)
  %f = Reshape(%e, %heads)
  %g = Transpose(%f) {perm: [0, 2, 1, 3]}
  %t = MatMul(%g, %k)
  %o = Softmax(%t)
  %u = MatMul(%c, %k)
  output "gathered" %p
  output "gated" %o
  output "no softmax" %u
  %v = MatMul(%a, %w)
  %x = Softmax(%v)
  output "a weight" %x
}"#;

    #[test]
    fn factors_of_the_scores_are_gathered_after_the_product() {
        insta::assert_snapshot!(after(SCALED));
    }

    #[test]
    fn the_numbers_stay() {
        check_close(SCALED, &[("q", &[2, 3, 8]), ("k", &[2, 2, 4, 3]), ("gate", &[2, 3, 8])], 1e-12);
    }
}
