//! The last touch to a training graph. ONNX Runtime runs it as it is written, without clean-ups of its own,
//! which would put back together what is computed twice on purpose and change the order.

use super::TrainingError;
use super::parameters::GRADIENT;
use super::step::LABELS;
use super::sums::sums_as_products;
use crate::canon::canonicalize;
use crate::ir::graph::{Def, Graph, Node, NodeId, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Change, Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_constant, copy_input, copy_node, rebuild, rebuild_in_order};
use crate::ir::shape::Dim;
use std::collections::{BTreeMap, BTreeSet};

/// Writes the last of a training graph's own nodes, cleans it up and gives it the last touch.
pub(super) fn complete(mut graph: Graph, change: Change) -> Result<Graph, TrainingError> {
    graph.apply(change)?;
    canonicalize(&mut graph)?;
    Ok(finish(&graph, LARGE)?)
}

/// Sums are products where that is faster, products read transposed factors where they lie and are scaled as they
/// are made, cheap values of the forward
/// pass are computed once more for the backward pass instead of kept, and gradients are made as soon as they can be.
/// Values of so many elements are `large`.
fn finish(graph: &Graph, large: u64) -> Result<Graph, PatchError> {
    let summed = sums_as_products(graph)?;
    let fused = rebuild(&summed, "products", &mut Products)?;
    let lean = Recompute::of(&fused, large).rebuild(&fused)?;
    rebuild_in_order(&lean, &gradients_first(&lean), "gradients_first", &mut Copy)
}

struct Copy;

impl Rebuild for Copy {}

/// `MatMul` of what a `Transpose` transposed in its last two axes, cast or not, and a product times a number, as
/// `FusedMatMul`.
struct Products;

impl Rebuild for Products {
    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        let [Some(a), Some(b)] = inputs else { return copy_node(p, graph, node, inputs) };
        p.set_scope(&node.name);
        let product = match node.op.name() {
            "MatMul" if node.op.is("MatMul") => transposed_product(p, *a, *b),
            "Mul" if node.op.is("Mul") => scaled_product(p, graph, node, *a, *b),
            _ => None,
        };
        let Some((op, factors)) = product else { return copy_node(p, graph, node, inputs) };
        let name = graph.value(node.outputs[0]).name.clone();
        p.named_node(&node.name, op, &factors.map(Some), vec![name])
    }
}

const FUSED: (&str, &str) = ("com.microsoft", "FusedMatMul");

fn transposed_product(p: &mut Patch<'_>, a: ValueId, b: ValueId) -> Option<(Op, [ValueId; 2])> {
    let [(a, transposed_a), (b, transposed_b)] = [a, b].map(|factor| before_transpose(p, factor));
    let turns = [("transA", transposed_a), ("transB", transposed_b)];
    let op = turns
        .into_iter()
        .fold(Op::in_domain(FUSED.0, FUSED.1), |op, (name, is)| op.with(name, i64::from(is)));
    (transposed_a || transposed_b).then_some((op, [a, b]))
}

/// A product that is read only to be multiplied by a number.
fn scaled_product(
    p: &Patch<'_>,
    graph: &Graph,
    node: &Node,
    a: ValueId,
    b: ValueId,
) -> Option<(Op, [ValueId; 2])> {
    let slot = usize::from(graph.as_scalar(node.input(0)?).is_some());
    let number = node.input(1 - slot)?;
    let scale = graph.as_scalar(number).filter(|_| graph.value(number).ty.rank() <= Some(2))?;
    let is_read_once = graph.value(node.input(slot)?).uses.len() == 1;
    let product = p.producer([a, b][slot]).filter(|_| is_read_once)?;
    let factors = [product.input(0)?, product.input(1)?];
    let is_fused = product.op.domain() == FUSED.0 && product.op.name() == FUSED.1;
    let (op, alpha) = match is_fused {
        true => (product.op.clone(), f64::from(product.op.float("alpha").unwrap_or(1.0))),
        false if product.op.is("MatMul") => (Op::in_domain(FUSED.0, FUSED.1), 1.0),
        false => return None,
    };
    Some((op.with("alpha", (alpha * scale) as f32), factors))
}

/// A factor and whether it is to be transposed.
fn before_transpose(p: &mut Patch<'_>, factor: ValueId) -> (ValueId, bool) {
    if let Some(x) = transposed(p, factor) {
        return (x, true);
    }
    let cast = p.producer(factor).filter(|n| n.op.is("Cast")).and_then(|n| n.input(0));
    match cast.and_then(|x| transposed(p, x)).zip(p.ty(factor).dtype) {
        Some((x, dtype)) => (p.cast(x, dtype), true),
        None => (factor, false),
    }
}

/// x in `Transpose(x)` that turns the last two axes.
fn transposed(p: &Patch<'_>, value: ValueId) -> Option<ValueId> {
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
        let order = graph.order();
        let backward = depends_on(graph, &order, labels.copied());
        let forward: Vec<NodeId> = order.into_iter().filter(|id| !backward.contains(id)).collect();
        let mut at_hand =
            AtHand { graph, large, backward: &backward, kept: BTreeSet::new(), cheap: BTreeSet::new() };
        forward.iter().for_each(|id| at_hand.look_at(*id));
        for id in &forward {
            let values = graph.node(*id).outputs.iter().filter(|v| at_hand.is_worth_keeping(**v));
            let values: Vec<ValueId> = values.copied().collect();
            at_hand.kept.extend(values);
        }
        forward.iter().for_each(|id| at_hand.look_at(*id));
        let cheap = at_hand.cheap;
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

/// The nodes that depend on a value.
fn depends_on(graph: &Graph, order: &[NodeId], value: Option<ValueId>) -> BTreeSet<NodeId> {
    let mut from: BTreeSet<ValueId> = value.into_iter().collect();
    let mut nodes = BTreeSet::new();
    for id in order {
        let node = graph.node(*id);
        if node.inputs.iter().flatten().any(|v| from.contains(v)) {
            nodes.insert(*id);
            from.extend(node.outputs.iter().copied());
        }
    }
    nodes
}

/// What the backward pass has anyway, and what follows from that in one pass.
struct AtHand<'g> {
    graph: &'g Graph,
    large: u64,
    backward: &'g BTreeSet<NodeId>,
    /// Values that nothing of the backward pass reads, kept for those that follow from them.
    kept: BTreeSet<ValueId>,
    cheap: BTreeSet<ValueId>,
}

impl AtHand<'_> {
    fn has(&self, value: ValueId) -> bool {
        !is_large(self.graph, value, self.large)
            || !matches!(self.graph.value(value).def, Def::Output { .. })
            || self.cheap.contains(&value)
            || self.kept.contains(&value)
            || is_read_by(self.graph, value, self.backward)
    }

    /// The large value that a node makes of `others` and what is at hand.
    fn follows(&self, id: NodeId, others: &BTreeSet<ValueId>) -> Option<ValueId> {
        let node = self.graph.node(id);
        let is_cheap = node.op.domain().is_empty() && CHEAP.contains(&node.op.name());
        let inputs = &mut node.inputs.iter().flatten();
        let made = *node.outputs.first().filter(|v| is_cheap && is_large(self.graph, **v, self.large))?;
        inputs.all(|v| others.contains(v) || self.has(*v)).then_some(made)
    }

    fn look_at(&mut self, id: NodeId) {
        if let Some(value) = self.follows(id, &BTreeSet::new()) {
            self.cheap.insert(value);
        }
    }

    /// Whether keeping one value saves keeping several.
    fn is_worth_keeping(&self, value: ValueId) -> bool {
        if self.has(value) {
            return false;
        }
        let (mut known, mut next, mut saved) = (BTreeSet::from([value]), vec![value], 0);
        while let Some(value) = next.pop() {
            for user in &self.graph.value(value).uses {
                let Use::Node { node, .. } = user else { continue };
                let Some(made) = self.follows(*node, &known).filter(|_| !self.backward.contains(node)) else {
                    continue;
                };
                if !self.cheap.contains(&made) && known.insert(made) {
                    saved += usize::from(is_read_by(self.graph, made, self.backward));
                    next.push(made);
                }
            }
        }
        saved > 1
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
/// node first. Nodes that make nothing but gradients are such nodes: they come last in the file, and those that
/// can be had first come last of all.
fn gradients_first(graph: &Graph) -> Vec<NodeId> {
    let is_last = |id: &NodeId| {
        let uses = graph.node(*id).outputs.iter().flat_map(|v| &graph.value(*v).uses);
        let mut names = uses.map(|user| match user {
            Use::GraphOutput(at) => graph.outputs()[*at as usize].0.as_str(),
            Use::Node { .. } => "",
        });
        names.all(|name| name.starts_with(GRADIENT))
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
  %transposed_v = Transpose(%v) {perm: [1, 0]} "turn v"
  %y = MatMul(%gated, %transposed_v) "y"
  %error = Sub(%y, %labels) "error"
  %loss = ReduceSumSquare(%error) {keepdims: 0} "loss"
  %d_gated = MatMul(%error, %v) "d gated"
  %part = Mul(%d_gated, %product) "part"
  %d_product = Mul(%part, %gate) "d product"
  %transposed_x = Transpose(%x) {perm: [1, 0]} "turn x"
  %d_w = MatMul(%transposed_x, %d_product) "d w"
  %transposed_gated = Transpose(%gated) {perm: [1, 0]} "turn gated"
  %d_v = MatMul(%transposed_gated, %error) "d v"
  output "loss" %loss
  output "gradient.w" %d_w
  output "gradient.v" %d_v
}"#;

    fn step() -> Graph {
        parse(STEP).expect("it parses")
    }

    #[test]
    fn transposed_factors_are_read_where_they_lie() {
        let fused = rebuild(&step(), "transposed_factors", &mut Products).expect("it is made");
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
        let gradients: Vec<ValueId> =
            graph.outputs().iter().filter(|(name, _)| name.starts_with(GRADIENT)).map(|(_, v)| *v).collect();
        let is_gradient = |id: &NodeId| graph.node(*id).outputs.iter().all(|v| gradients.contains(v));
        let first = order.iter().position(is_gradient).expect("there are gradients");
        assert_eq!(order.len() - first, gradients.len());
        assert!(order[first..].iter().all(is_gradient));
        let place = |id: &NodeId| graph.order().iter().position(|other| other == id);
        assert!(order[first..].is_sorted_by_key(|id| std::cmp::Reverse(place(id))));
    }

    #[test]
    fn what_is_computed_stays() {
        let dims = [("x", [4, 3]), ("labels", [4, 2]), ("w", [3, 2]), ("v", [2, 2])];
        let given: Vec<(&str, Array)> =
            dims.iter().zip(1..).map(|((name, dims), seed)| (*name, noise(dims, seed))).collect();
        let finished = finish(&step(), 1).expect("it is made");
        assert_ne!(print(&finished), print(&step()));
        let (before, after) = (run(&step(), &given), run(&finished, &given));
        for (name, want) in &before {
            // The same numbers in f64, multiplied in the same order.
            assert!(relative_error(&after[name], want) < 1e-14, "{name}");
        }
    }
}
