//! The last touch to a training graph. ONNX Runtime runs it as it is written, without clean-ups of its own,
//! which would put back together what is computed twice on purpose and change the order.

use super::step::LABELS;
use crate::ir::graph::{Def, Graph, Node, NodeId, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use crate::rebuild::{Rebuild, copy_constant, copy_node, rebuild, rebuild_in_order};
use std::collections::{BTreeMap, BTreeSet};

/// Products read transposed factors where they lie, cheap values of the forward pass are computed once more
/// for the backward pass instead of kept, and gradients are made as soon as they can be.
pub(super) fn finish(graph: &Graph) -> Result<Graph, PatchError> {
    finish_from(graph, LARGE)
}

/// The same where values of so many elements are large.
fn finish_from(graph: &Graph, large: u64) -> Result<Graph, PatchError> {
    let fused = rebuild(graph, "transposed_factors", &mut TransposedFactors)?;
    let lean = Recompute::of(&fused, large).rebuild(&fused)?;
    rebuild_in_order(&lean, &gradients_first(&lean), "gradients_first", &mut Copy)
}

struct Copy;

impl Rebuild for Copy {
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        copy_input(p, graph, id)
    }

    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        copy_constant(p, graph, id)
    }
}

fn copy_input(p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
    let value = graph.value(id);
    match (value.ty.dtype, &value.ty.shape) {
        (Some(dtype), Some(shape)) => p.input(&value.name, dtype, shape.clone()),
        _ => {
            p.fail(format!("input `{}` has no type", value.name));
            id
        }
    }
}

/// `MatMul` of what a `Transpose` turned in its last two axes, cast or not, as `FusedMatMul`.
struct TransposedFactors;

impl Rebuild for TransposedFactors {
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        copy_input(p, graph, id)
    }

    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        copy_constant(p, graph, id)
    }

    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        let [Some(a), Some(b)] = inputs else { return copy_node(p, graph, node, inputs) };
        if !node.op.is("MatMul") {
            return copy_node(p, graph, node, inputs);
        }
        p.set_scope(&node.name);
        let [(a, turned_a), (b, turned_b)] = [*a, *b].map(|factor| before_transpose(p, factor));
        if !turned_a && !turned_b {
            return copy_node(p, graph, node, inputs);
        }
        let op = Op::in_domain("com.microsoft", "FusedMatMul")
            .with("transA", i64::from(turned_a))
            .with("transB", i64::from(turned_b));
        let name = graph.value(node.outputs[0]).name.clone();
        p.named_node(&node.name, op, &[Some(a), Some(b)], vec![name])
    }
}

/// A factor and whether it is to be turned.
fn before_transpose(p: &mut Patch<'_>, factor: ValueId) -> (ValueId, bool) {
    if let Some(x) = turned(p, factor) {
        return (x, true);
    }
    let cast = p.producer(factor).filter(|n| n.op.is("Cast")).and_then(|n| n.input(0));
    match cast.and_then(|x| turned(p, x)).zip(p.ty(factor).dtype) {
        Some((x, dtype)) => (p.cast(x, dtype), true),
        None => (factor, false),
    }
}

/// x in `Transpose(x)` that turns the last two axes.
fn turned(p: &Patch<'_>, value: ValueId) -> Option<ValueId> {
    let node = p.producer(value).filter(|n| n.op.is("Transpose"))?;
    let perm = node.op.ints("perm").filter(|perm| perm.len() >= 2)?;
    let rank = perm.len() as i64;
    let mut want: Vec<i64> = (0..rank).collect();
    want.swap(perm.len() - 1, perm.len() - 2);
    (perm == want).then(|| node.input(0)).flatten()
}

/// Which values of the forward pass are computed anew for the backward pass.
struct Recompute {
    /// Nodes of the backward pass: what depends on the labels.
    backward: BTreeSet<NodeId>,
    /// Values that can be had from others that the backward pass reads anyway.
    cheap: BTreeSet<ValueId>,
    /// For each of them that was needed, what stands for it in the backward pass.
    again: BTreeMap<ValueId, ValueId>,
    /// What stands for each value in the new graph.
    new: BTreeMap<ValueId, ValueId>,
}

/// Take one pass over their inputs.
const CHEAP: [&str; 11] =
    ["Add", "Cast", "Div", "Exp", "Mul", "Neg", "Reshape", "Sigmoid", "Squeeze", "Sub", "Unsqueeze"];

/// Values of fewer elements are kept.
const LARGE: u64 = 1 << 20;

impl Recompute {
    fn of(graph: &Graph, large: u64) -> Self {
        let labels = graph.inputs().iter().find(|id| graph.value(**id).name == LABELS);
        let mut backward = BTreeSet::new();
        let mut from: BTreeSet<ValueId> = labels.copied().into_iter().collect();
        let mut cheap = BTreeSet::new();
        let order = graph.order();
        for id in &order {
            let node = graph.node(*id);
            if node.inputs.iter().flatten().any(|v| from.contains(v)) {
                backward.insert(*id);
                from.extend(node.outputs.iter().copied());
            }
        }
        for id in order.iter().filter(|id| !backward.contains(id)) {
            let node = graph.node(*id);
            let at_hand = |v: &ValueId| {
                !is_large(graph, *v, large)
                    || !matches!(graph.value(*v).def, Def::Output { .. })
                    || cheap.contains(v)
                    || is_read_by(graph, *v, &backward)
            };
            let is_cheap = node.op.domain().is_empty() && CHEAP.contains(&node.op.name());
            if is_cheap
                && is_large(graph, node.outputs[0], large)
                && node.inputs.iter().flatten().all(at_hand)
            {
                cheap.insert(node.outputs[0]);
            }
        }
        Self { backward, cheap, again: BTreeMap::new(), new: BTreeMap::new() }
    }

    fn rebuild(mut self, graph: &Graph) -> Result<Graph, PatchError> {
        rebuild(graph, "recompute", &mut self)
    }

    /// What the backward pass reads for a value of the old graph.
    fn read_again(&mut self, p: &mut Patch<'_>, graph: &Graph, value: ValueId) -> ValueId {
        if !self.cheap.contains(&value) {
            return self.new.get(&value).copied().unwrap_or(value);
        }
        if let Some(again) = self.again.get(&value) {
            return *again;
        }
        let Some((id, _)) = graph.producer(value) else { return value };
        let node = graph.node(id);
        let inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|v| v.map(|v| self.read_again(p, graph, v))).collect();
        let name = format!("{}/again", graph.value(value).name);
        let made = p.named_node(&format!("{}/again", node.name), node.op.clone(), &inputs, vec![name]);
        self.again.insert(value, made[0]);
        made[0]
    }
}

fn is_large(graph: &Graph, value: ValueId, large: u64) -> bool {
    let shape = graph.value(value).ty.shape.as_ref();
    let len = shape.map(|s| s.iter().filter_map(Dim::known).product::<u64>());
    len.is_some_and(|len| len >= large)
}

fn is_read_by(graph: &Graph, value: ValueId, nodes: &BTreeSet<NodeId>) -> bool {
    graph.value(value).uses.iter().any(|user| matches!(user, Use::Node { node, .. } if nodes.contains(node)))
}

impl Rebuild for Recompute {
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        let new = copy_input(p, graph, id);
        self.new.insert(id, new);
        new
    }

    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        let new = copy_constant(p, graph, id);
        self.new.insert(id, new);
        new
    }

    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        let is_backward = graph.producer(node.outputs[0]).is_some_and(|(id, _)| self.backward.contains(&id));
        let outputs = if is_backward {
            let inputs: Vec<Option<ValueId>> =
                node.inputs.iter().map(|v| v.map(|v| self.read_again(p, graph, v))).collect();
            copy_node(p, graph, node, &inputs)
        } else {
            copy_node(p, graph, node, inputs)
        };
        self.new.extend(node.outputs.iter().copied().zip(outputs.iter().copied()));
        outputs
    }
}

/// An order in which ONNX Runtime makes each gradient as soon as it can be made.
///
/// It works back from the nodes that nobody reads, the last first, and from each to the inputs, again the last
/// node first. Nodes that make gradients are such nodes: they come last in the file, and those that can be had
/// first come last of all.
fn gradients_first(graph: &Graph) -> Vec<NodeId> {
    let is_last = |id: &NodeId| {
        let outputs = &graph.node(*id).outputs;
        outputs.iter().all(|v| graph.value(*v).uses.iter().all(|user| matches!(user, Use::GraphOutput(_))))
    };
    let (last, mut order): (Vec<NodeId>, Vec<NodeId>) = graph.order().into_iter().partition(is_last);
    order.extend(last.into_iter().rev());
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::eval::Array;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, relative_error, run};

    /// A gated layer with its loss, and the gradient of its weight.
    const STEP: &str = r#"graph "step" {
  input %x: f32[4, 3]
  input %labels: f32[4, 2]
  input %w: f32[3, 2]
  input %v: f32[2, 2]
  %product = MatMul(%x, %w) "product"
  %gate = Sigmoid(%product) "gate"
  %gated = Mul(%product, %gate) "gated"
  %turned_v = Transpose(%v) {perm: [1, 0]} "turn v"
  %y = MatMul(%gated, %turned_v) "y"
  %error = Sub(%y, %labels) "error"
  %loss = ReduceSumSquare(%error) {keepdims: 0} "loss"
  %d_gated = MatMul(%error, %v) "d gated"
  %part = Mul(%d_gated, %product) "part"
  %d_product = Mul(%part, %gate) "d product"
  %turned_x = Transpose(%x) {perm: [1, 0]} "turn x"
  %d_w = MatMul(%turned_x, %d_product) "d w"
  %turned_gated = Transpose(%gated) {perm: [1, 0]} "turn gated"
  %d_v = MatMul(%turned_gated, %error) "d v"
  output "loss" %loss
  output "gradient.w" %d_w
  output "gradient.v" %d_v
}"#;

    fn step() -> Graph {
        parse(STEP).expect("it parses")
    }

    #[test]
    fn transposed_factors_are_read_where_they_lie() {
        let fused = rebuild(&step(), "transposed_factors", &mut TransposedFactors).expect("it is made");
        insta::assert_snapshot!(print(&fused));
    }

    #[test]
    fn cheap_values_are_computed_again() {
        let lean = Recompute::of(&step(), 8).rebuild(&step()).expect("it is made");
        insta::assert_snapshot!(print(&lean));
    }

    #[test]
    fn small_values_are_kept() {
        let lean = Recompute::of(&step(), 9).rebuild(&step()).expect("it is made");
        assert_eq!(lean.nodes().count(), step().nodes().count());
    }

    #[test]
    fn gradients_come_last_the_first_of_them_at_the_end() {
        let graph = step();
        let order = gradients_first(&graph);
        let names: Vec<&str> = order.iter().map(|id| graph.node(*id).name.as_str()).collect();
        insta::assert_snapshot!(names.join("\n"));
        let makes_outputs = |id: &NodeId| {
            let mut values = graph.node(*id).outputs.iter();
            values.all(|v| graph.outputs().iter().any(|(_, output)| output == v))
        };
        let first = order.iter().position(makes_outputs).expect("there are outputs");
        assert!(order[first..].iter().all(makes_outputs));
        let place = |id: &NodeId| graph.order().iter().position(|other| other == id);
        assert!(order[first..].is_sorted_by_key(|id| std::cmp::Reverse(place(id))));
    }

    #[test]
    fn what_is_computed_stays() {
        let dims = [("x", [4, 3]), ("labels", [4, 2]), ("w", [3, 2]), ("v", [2, 2])];
        let given: Vec<(&str, Array)> =
            dims.iter().zip(1..).map(|((name, dims), seed)| (*name, noise(dims, seed))).collect();
        let finished = finish_from(&step(), 1).expect("it is made");
        assert_ne!(print(&finished), print(&step()));
        let (before, after) = (run(&step(), &given), run(&finished, &given));
        for (name, want) in &before {
            // The same numbers in f64, multiplied in the same order.
            assert!(relative_error(&after[name], want) < 1e-14, "{name}");
        }
    }
}
