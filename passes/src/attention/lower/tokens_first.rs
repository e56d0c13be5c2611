//! Rows that are padded in front, for an operator that counts the tokens of a row from its beginning: the tokens are
//! brought to the front of their row, and what is computed of them back to where they stood.
//!
//! *Becomes:* where all between attentions takes each token by itself, the ids are moved at the beginning, and the rows
//! that the last product reads at the end; elsewhere queries, keys, values and results are moved around each operator.
//! *Exact:* yes. Rows without padding in front stay as they are.

use super::by_token::{TokenAxes, token_axes};
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use dijiang_format::dtype::DType;

/// What the pass calls itself, in errors and in the names of its nodes.
pub const RULE: &str = "tokens_first";

/// Which tokens are none but padding.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    /// `[batch, past + sequence]`
    pub(super) mask: ValueId,
    /// Of the tokens of a call, as [`recent_tokens`] wrote it.
    pub(super) recent: ValueId,
}

/// Lets rows be padded in front. `attends` are the nodes that count tokens.
pub(super) fn bring_tokens_first(
    graph: &mut Graph,
    marks: Marks,
    attends: &dyn Fn(&Node) -> bool,
) -> Result<(), PatchError> {
    let change = {
        let mut p = Patch::new(graph, RULE);
        p.set_scope(RULE);
        match Around::all(graph, attends) {
            Some(around) => around.write(&mut p, marks),
            None => {
                let nodes = graph.order().into_iter().filter(|id| attends(graph.node(*id)));
                let nodes: Vec<NodeId> = nodes.collect();
                around_each(&mut p, marks, &nodes);
            }
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

/// Which tokens of a call are none but padding, i64 `[batch, sequence]`; `by_token` has the tokens on axis 1.
pub(super) fn recent_tokens(p: &mut Patch<'_>, mask: ValueId, by_token: ValueId) -> ValueId {
    let ones = p.cast(mask, DType::I64);
    let (batch, time) = (p.shape_of(ones, 0, 1), p.shape_of(by_token, 1, 2));
    let (start, end) = (p.neg(time), p.ints(&[i64::MAX]));
    let recent = p.slice_to(ones, 1, start, end);
    // States the dims again, which a slice from a computed bound does not.
    let shape = p.concat(&[batch, time], 0);
    p.reshape_to(recent, shape)
}

/// Which row of `[batch · sequence]` stands at each place, i64 `[batch, sequence]`.
struct Rows {
    /// Tokens first.
    there: ValueId,
    /// As they were.
    back: ValueId,
}

impl Rows {
    fn new(p: &mut Patch<'_>, marks: Marks, by_token: ValueId) -> Self {
        // From what is not moved itself.
        let recent = recent_tokens(p, marks.mask, by_token);
        p.replace(marks.recent, recent);
        let (batch, time) = (p.shape_of(recent, 0, 1), p.shape_of(recent, 1, 2));
        let (batch, time) = (p.squeeze(batch, &[0]), p.squeeze(time, &[0]));
        // The first token of a row; a row that has none stays.
        let ones = p.cast(recent, DType::F32);
        let lead = p.node(Op::new("ArgMax").with("axis", 1i64).with("keepdims", 1i64), &[ones]);
        let place = p.range(time);
        let ahead = p.add(place, lead);
        let wrapped = p.sub(ahead, time);
        let inside = p.node(Op::new("Less"), &[ahead, time]);
        let there = p.select(inside, ahead, wrapped);
        let after = p.sub(place, lead);
        let wrapped = p.add(after, time);
        let zero = p.scalar_like(after, 0.0);
        let outside = p.node(Op::new("Less"), &[after, zero]);
        let back = p.select(outside, wrapped, after);
        let row = p.range(batch);
        let first = p.mul(row, time);
        let first = p.unsqueeze(first, &[1]);
        Self { there: p.add(first, there), back: p.add(first, back) }
    }
}

/// `x` of `[batch, sequence, …]` with its rows in another order.
fn moved(p: &mut Patch<'_>, x: ValueId, rows: ValueId) -> ValueId {
    let rank = p.rank(x);
    let rest: Vec<i64> = (2..rank).map(|axis| p.known_dim(x, axis) as i64).collect();
    let flat = p.reshape(x, &[&[-1], &rest[..]].concat());
    p.gather(flat, rows, 0)
}

/// What is moved where the whole model takes each token by itself.
struct Around {
    /// The first also tells how many tokens there are.
    inputs: Vec<ValueId>,
    /// Outputs, or what stands for them: the product that makes one, with its rows and its matrix.
    ends: Vec<End>,
}

enum End {
    Output(ValueId),
    Product { made: ValueId, rows: ValueId, node: NodeId },
}

/// Whether `[batch, sequence, …]` can be [`moved`].
fn has_known_rows(graph: &Graph, value: ValueId) -> bool {
    let rest = graph.value(value).ty.shape.as_ref().and_then(|shape| shape.get(2..));
    rest.is_some_and(|rest| rest.iter().all(|dim| dim.known().is_some()))
}

impl Around {
    fn all(graph: &Graph, attends: &dyn Fn(&Node) -> bool) -> Option<Self> {
        let first = graph.order().into_iter().map(|id| graph.node(id)).find(|node| attends(node))?;
        let shape = |value: ValueId| graph.value(value).ty.shape.as_deref();
        let [batch, time, _] = shape(first.input(0)?)? else { return None };
        let holds = |input: &&ValueId| match shape(**input) {
            Some([b, t, rest @ ..]) => b == batch && t == time && rest.len() < 2,
            _ => false,
        };
        let inputs: Vec<ValueId> = graph.inputs().iter().filter(holds).copied().collect();
        if inputs.is_empty() || !inputs.iter().all(|input| has_known_rows(graph, *input)) {
            return None;
        }
        let tokens: TokenAxes = inputs.iter().map(|input| (*input, 1)).collect();
        let axes = token_axes(graph, tokens, attends)?;
        let outputs = graph.outputs().iter().filter(|(_, value)| axes.contains_key(value));
        let ends = outputs.map(|(_, value)| End::of(graph, *value, &axes)).collect::<Option<_>>()?;
        Some(Self { inputs, ends })
    }

    fn write(&self, p: &mut Patch<'_>, marks: Marks) {
        let Some(first) = self.inputs.first() else { return };
        let rows = Rows::new(p, marks, *first);
        for input in &self.inputs {
            let there = moved(p, *input, rows.there);
            p.replace(*input, there);
        }
        for end in &self.ends {
            match end {
                End::Output(value) => {
                    let back = moved(p, *value, rows.back);
                    p.replace(*value, back);
                }
                End::Product { made, rows: x, node } => {
                    let back = moved(p, *x, rows.back);
                    let node = p.graph().node(*node);
                    let inputs: Vec<Option<ValueId>> =
                        std::iter::once(Some(back)).chain(node.inputs[1..].iter().copied()).collect();
                    let product = p.node_outputs(node.op.clone(), &inputs, 1);
                    p.replace(*made, product[0]);
                }
            }
        }
    }
}

impl End {
    /// Rows of a hidden state are narrower than logits.
    fn of(graph: &Graph, value: ValueId, axes: &TokenAxes) -> Option<Self> {
        let fits = axes.get(&value) == Some(&1) && has_known_rows(graph, value);
        let is_last = graph.value(value).uses.iter().all(|user| matches!(user, Use::GraphOutput(_)));
        let (node, _) = graph.producer(value).filter(|_| fits && is_last)?;
        let made = graph.node(node);
        let is_product = made.op.is("MatMul") || made.op.name() == "MatMulNBits";
        let rows = made.input(0).filter(|rows| is_product && axes.get(rows) == Some(&1));
        // What is read of an input itself stands where it stood, so that it cannot be moved back.
        let is_moved = |rows: &ValueId| {
            graph.producer(*rows).is_some()
                && graph.value(*rows).ty.rank() == Some(3)
                && has_known_rows(graph, *rows)
        };
        Some(match rows.filter(is_moved) {
            Some(rows) => Self::Product { made: value, rows, node },
            None => Self::Output(value),
        })
    }
}

fn around_each(p: &mut Patch<'_>, marks: Marks, nodes: &[NodeId]) {
    let queries = nodes.first().and_then(|id| p.graph().node(*id).input(0));
    let Some(queries) = queries else { return };
    let rows = Rows::new(p, marks, queries);
    for id in nodes {
        let node = p.graph().node(*id);
        let mut inputs = node.inputs.clone();
        for packed in inputs.iter_mut().take(3).flatten() {
            *packed = moved(p, *packed, rows.there);
        }
        let made = p.node_outputs(node.op.clone(), &inputs, node.outputs.len());
        let back = moved(p, made[0], rows.back);
        p.replace(node.outputs[0], back);
        for (old, new) in node.outputs.iter().zip(&made).skip(1) {
            p.replace(*old, *new);
        }
    }
}
