//! Matches: operators that give what they are given: `Identity`, `Dropout` outside training, `Cast` to
//! the same type, `Transpose` that moves nothing, `Concat` of one part and empty ones, `Slice` of everything, `Pad` by nothing,
//! `Expand` to the same shape, `Mul` and `Div` by 1 or by ones, `And` with true
//! Becomes: their input
//! Exact: yes

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::{is_open_end, resolve_axis};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;

pub(super) struct NoOp;

/// Operators between a constant and what it is brought to, at most.
const MAX_STEPS: usize = 16;

impl GraphRule for NoOp {
    fn name(&self) -> &'static str {
        "no_op"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let kept = passed_through(w.graph, node)?;
            Some(vec![w.current(kept)])
        })
    }
}

/// The input that a node passes on unchanged.
fn passed_through(graph: &Graph, node: &Node) -> Option<ValueId> {
    if !node.op.domain().is_empty() {
        return None;
    }
    let x = node.input(0)?;
    let is_no_op = match node.op.name() {
        "Identity" => true,
        "Dropout" => is_inference(graph, node),
        "Cast" => graph.value(x).ty.dtype.is_some_and(|d| node.op.str("to") == Some(d.name())),
        "Transpose" => node.op.ints("perm").is_some_and(|p| (0..).zip(p).all(|(i, axis)| i == *axis)),
        "Concat" => return only_part(graph, node),
        "Slice" => is_whole(graph, node),
        "Pad" => node.input(1).is_some_and(|v| all_zero(graph, v)),
        "Expand" => same_shape(graph, x, node.outputs[0]),
        "Mul" | "And" => return neutral(graph, node, &[0, 1]),
        "Div" => return neutral(graph, node, &[1]),
        _ => false,
    };
    is_no_op.then_some(x)
}

/// Without training mode, and with nobody reading which elements were kept.
fn is_inference(graph: &Graph, node: &Node) -> bool {
    let off = node.input(2).is_none_or(|v| graph.as_scalar(v) == Some(0.0));
    off && node.outputs.get(1).is_none_or(|v| graph.value(*v).uses.is_empty())
}

/// The one input of a `Concat` that is not known to be empty.
fn only_part(graph: &Graph, node: &Node) -> Option<ValueId> {
    let is_empty = |value: ValueId| {
        let shape = graph.value(value).ty.shape.as_deref()?;
        let axis = resolve_axis(node.op.int("axis")?, shape.len()).ok()?;
        Some(shape[axis] == Dim::Known(0))
    };
    let mut parts = node.inputs.iter().flatten().filter(|part| is_empty(**part) != Some(true));
    let part = parts.next()?;
    parts.next().is_none().then_some(*part)
}

fn is_whole(graph: &Graph, node: &Node) -> bool {
    let ints = |slot: usize| node.input(slot).and_then(|v| graph.as_const(v)?.to_i64());
    let (Some(starts), Some(ends)) = (ints(1), ints(2)) else { return false };
    let one_by_one = node.input(4).is_none() || ints(4).is_some_and(|s| s.iter().all(|s| *s == 1));
    let axes = match node.input(3) {
        Some(_) => ints(3).unwrap_or_default(),
        None => (0..starts.len() as i64).collect(),
    };
    let reaches = |(axis, end): (&i64, &i64)| is_open_end(*end) || length(graph, node, *axis) == Some(*end);
    one_by_one
        && starts.iter().all(|s| *s == 0)
        && axes.len() == ends.len()
        && axes.iter().zip(&ends).all(reaches)
}

/// The length of an axis of the first input, where it is known.
fn length(graph: &Graph, node: &Node, axis: i64) -> Option<i64> {
    let shape = graph.value(node.input(0)?).ty.shape.as_deref()?;
    shape[resolve_axis(axis, shape.len()).ok()?].known().map(|length| length as i64)
}

fn all_zero(graph: &Graph, ints: ValueId) -> bool {
    graph.as_const(ints).and_then(Tensor::to_i64).is_some_and(|pads| pads.iter().all(|n| *n == 0))
}

fn same_shape(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    let shape = |v: ValueId| graph.value(v).ty.shape.as_ref();
    shape(a) == shape(b) && shape(a).is_some_and(|s| !s.contains(&Dim::Unknown))
}

/// The other input, where one of the inputs at `slots` is 1 (or true) everywhere and broadcasts nothing.
fn neutral(graph: &Graph, node: &Node, slots: &[usize]) -> Option<ValueId> {
    let [Some(a), Some(b)] = [node.input(0), node.input(1)] else { return None };
    slots.iter().find_map(|slot| {
        let (one, x) = if *slot == 0 { (a, b) } else { (b, a) };
        let rank = |v: ValueId| graph.value(v).ty.rank();
        let is_single = graph.as_scalar(one).is_some() && rank(one)? <= rank(x)?;
        let fits = is_single || same_shape(graph, x, node.outputs[0]);
        (fits && is_one(graph, one)).then_some(x)
    })
}

/// Whether a value is 1 everywhere: a constant 1, whatever shape it was brought to.
fn is_one(graph: &Graph, value: ValueId) -> bool {
    let mut value = value;
    for _ in 0..MAX_STEPS {
        let Some((node, _)) = graph.producer(value) else { break };
        let node = graph.node(node);
        let keeps = ["Cast", "Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"];
        let Some(x) = node.input(0).filter(|_| keeps.iter().any(|op| node.op.is(op))) else { return false };
        value = x;
    }
    !graph.value(value).is_weight && graph.as_scalar(value) == Some(1.0)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    /// The graph after canonicalisation has `x` itself in the place of what joined it with nothing.
    #[test]
    fn empty_parts_and_slices_to_the_known_end_go() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[a, 3]
  const %from: i64[1] = [0]
  const %three: i64[1] = [3]
  const %two: i64[1] = [2]
  const %last: i64[1] = [1]
  %whole = Slice(%x, %from, %three, %last)
  %none = Slice(%x, %three, %three, %last)
  %y = Concat(%none, %whole) {axis: 1}
  output "gone" %y
  %some = Slice(%x, %from, %two, %last)
  %z = Concat(%some, %none, %x) {axis: 1}
  output "two parts" %z
}"#
        ), @r#"
        graph "g" {
          input %x: f32[a, 3]
          const %from: i64[1] = [0]
          const %two: i64[1] = [2]
          const %last: i64[1] = [1]
          %some = Slice(%x, %from, %two, %last) "some": f32[a, 2]
          const %three: i64[1] = [3]
          const %none/ints: i64[1] = [9223372036854775807]
          %none/Slice:0 = Slice(%x, %three, %none/ints, %last) "none/Slice": f32[a, 0]
          %z = Concat(%some, %none/Slice:0, %x) {axis: 1} "z": f32[a, 5]
          output "gone" %x
          output "two parts" %z
        }
        "#);
    }

    #[test]
    fn what_changes_nothing_goes_and_what_changes_something_stays() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[a, 1]
  input %on: bool[]
  const %one: f32[] = [1.0]
  const %row: f32[1, 1, 1] = [1.0]
  const %from: i64[1] = [0]
  const %end: i64[1] = [9223372036854775807]
  const %near_end: i64[1] = [-1]
  const %sizes: i64[2] = [1, 3]
  const %ones: i64[2] = [1, 1]
  const %none: i64[4] = [0, 0, 0, 0]
  const %some: i64[4] = [0, 0, 0, 1]
  %a = Identity(%x)
  %b = Dropout(%a)
  %c = Cast(%b) {to: "f32"}
  %d = Transpose(%c) {perm: [0, 1]}
  %e = Concat(%d) {axis: 0}
  %f = Slice(%e, %from, %end)
  %g = Expand(%f, %ones)
  %g2 = Pad(%g, %none)
  %h = Mul(%one, %g2)
  output "gone" %h
  %i = Mul(%x, %row)
  output "rank grows" %i
  %j = Div(%one, %x)
  output "reciprocal" %j
  %k = Slice(%x, %from, %near_end)
  output "part" %k
  %l = Expand(%x, %sizes)
  output "wider" %l
  %n = Pad(%x, %some)
  output "longer" %n
  %m = Dropout(%x, _, %on)
  output "training may be on" %m
  %dims = Shape(%x)
  %spread = Expand(%one, %dims)
  %o = Mul(%spread, %x)
  output "ones" %o
  %p = Mul(%spread, %one)
  output "wider than 1" %p
}"#
        ));
    }
}
