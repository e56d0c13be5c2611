//! What looks from token to token outside an attention, such as a `CumSum` over the tokens or a window of a `Conv`, and what is
//! computed with the number of tokens of a call. A graph that carries states from call to call would give other numbers
//! fed in portions than fed all at once.

use super::lower::by_token::is_elementwise;
use super::positions::evaluate;
use super::site::past_of;
use super::trial::{Trial, is_padding_input};
use crate::ir::eval::Array;
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::ops::einsum::equation;
use crate::ir::shape::Dim;
use crate::ir::walk::{ValueSet, computed, depth_first};
use dijiang_format::dtype::DType;
use dijiang_format::names::POSITIONS;
use std::collections::BTreeSet;

/// The nodes that do so, of those that no rule called `own` wrote. `tokens` is how many a call has. Where that is a number
/// nothing is found: other sizes may be the same.
pub(super) fn looks_back(graph: &Graph, own: &str, tokens: &Dim) -> Vec<NodeId> {
    if !matches!(tokens, Dim::Sym(_)) {
        return Vec::new();
    }
    let search = Search { graph, own, tokens, contents: contents(graph), given: computed(graph) };
    let others = graph.order().into_iter().filter(|id| graph.node(*id).origin != own);
    let others: Vec<NodeId> = others.filter(|id| search.reads_contents(graph.node(*id))).collect();
    let lengths = search.lengths(&others);
    let found = others.into_iter().filter(|id| {
        let node = graph.node(*id);
        let reads_length = || node.inputs.iter().flatten().any(|v| lengths.contains(v));
        search.mixes(node) || search.moves(node) || is_elementwise(&node.op) && reads_length()
    });
    found.collect()
}

/// Values that depend on what tokens and states hold, and not only on how many there are and where they stand.
fn contents(graph: &Graph) -> ValueSet {
    let is_told = |v: &ValueId| is_padding_input(graph, *v) || graph.value(*v).name == POSITIONS;
    let mut found: ValueSet = graph.inputs().iter().copied().filter(|v| !is_told(v)).collect();
    for node in graph.order().into_iter().map(|id| graph.node(id)) {
        let is_size = node.op.is("Shape") || node.op.is("Size");
        if !is_size && node.inputs.iter().flatten().any(|v| found.contains(*v)) {
            found.extend(&node.outputs);
        }
    }
    found
}

struct Search<'g> {
    graph: &'g Graph,
    /// The rule that wrote the attentions, which are not looked at.
    own: &'g str,
    tokens: &'g Dim,
    /// What the tokens and the states hold, and what is computed from it.
    contents: ValueSet,
    /// What depends on anything that is given.
    given: ValueSet,
}

impl Search<'_> {
    fn reads_contents(&self, node: &Node) -> bool {
        node.inputs.iter().flatten().any(|v| self.contents.contains(*v))
    }

    fn shape(&self, value: Option<ValueId>) -> &[Dim] {
        value.and_then(|v| self.graph.value(v).ty.shape.as_deref()).unwrap_or_default()
    }

    /// Whether an axis of an input, that holds what the tokens do, is that of the tokens.
    fn is_of_tokens(&self, node: &Node, slot: usize, axis: i64) -> bool {
        let value = node.input(slot).filter(|v| self.contents.contains(*v));
        let shape = self.shape(value);
        resolve_axis(axis, shape.len()).is_ok_and(|axis| shape.get(axis) == Some(self.tokens))
    }

    fn ints(&self, node: &Node, slot: usize) -> Option<Vec<i64>> {
        self.graph.as_const(node.input(slot)?)?.to_i64()
    }

    /// Whether a node makes one number of several tokens, or moves them.
    fn mixes(&self, node: &Node) -> bool {
        let rank = self.shape(node.input(0)).len() as i64;
        let any = |axes: &[i64]| axes.iter().any(|axis| self.is_of_tokens(node, 0, *axis));
        let attr = |default: i64| node.op.int("axis").unwrap_or(default);
        match node.op.name() {
            _ if !node.op.domain().is_empty() => false,
            "CumSum" => self.ints(node, 1).is_some_and(|axes| any(&axes)),
            "ArgMax" | "ArgMin" => any(&[attr(0)]),
            "TopK" | "Softmax" | "LogSoftmax" => any(&[attr(-1)]),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                let first = attr(-1);
                any(&(if first < 0 { first..0 } else { first..rank }).collect::<Vec<i64>>())
            }
            "InstanceNormalization" | "GroupNormalization" | "GlobalAveragePool" | "GlobalMaxPool" => {
                any(&(2..rank).collect::<Vec<i64>>())
            }
            "LSTM" | "GRU" | "RNN" => any(&[0, 1]),
            "Conv" | "ConvInteger" => {
                self.kernel(node).iter().zip(2..).any(|(size, axis)| *size > 1 && any(&[axis]))
            }
            "MaxPool" | "AveragePool" => {
                let sizes = node.op.ints("kernel_shape").unwrap_or_default();
                sizes.iter().zip(2..).any(|(size, axis)| *size > 1 && any(&[axis]))
            }
            "MatMul" => any(&[-1]) || self.is_of_tokens(node, 1, -2),
            "Einsum" => self.is_summed(node) == Some(true),
            "Concat" => self.is_joined(node),
            "Pad" => self.is_padded(node),
            name if name.starts_with("Reduce") => match node.op.ints("axes") {
                Some(axes) => any(axes),
                None => any(&(0..rank).collect::<Vec<i64>>()),
            },
            _ => false,
        }
    }

    fn kernel(&self, node: &Node) -> Vec<u64> {
        let weight = self.shape(node.input(1));
        weight.iter().skip(2).map(|size| size.known().unwrap_or_default()).collect()
    }

    /// Whether tokens stand beside others that no cache holds.
    fn is_joined(&self, node: &Node) -> bool {
        let axis = node.op.int("axis").unwrap_or_default();
        let mut slots = 0..node.inputs.len();
        slots.any(|slot| self.is_of_tokens(node, slot, axis)) && !self.has_past(node)
    }

    fn is_padded(&self, node: &Node) -> bool {
        let pads = self.ints(node, 1).unwrap_or_default();
        let rank = (pads.len() / 2).max(1);
        let is_longer = |at: usize| pads[at] != 0 && self.is_of_tokens(node, 0, (at % rank) as i64);
        (0..pads.len()).any(is_longer)
    }

    /// Whether an `Einsum` sums over the tokens.
    fn is_summed(&self, node: &Node) -> Option<bool> {
        let ranks: Vec<Option<usize>> =
            node.inputs.iter().map(|value| self.graph.value((*value)?).ty.rank()).collect();
        let equation = equation(&node.op, &ranks).ok()?;
        let operands = equation.operands.iter().enumerate();
        let mut letters = operands.flat_map(|(slot, letters)| (0..).zip(letters).map(move |l| (slot, l)));
        Some(letters.any(|(slot, (axis, letter))| {
            !equation.result.contains(letter) && self.is_of_tokens(node, slot, axis)
        }))
    }

    /// Whether a node takes some of the tokens, and what it took meets all of them again or others in its place, as where each
    /// token is mixed with the one before. The last token alone, which is all that logits are wanted of, meets none.
    fn moves(&self, node: &Node) -> bool {
        let Some((axis, taken)) = self.taken(node).zip(node.outputs.first()) else { return false };
        let meets_tokens = |value: ValueId| {
            self.readers(value).any(|reader| {
                let others = reader.inputs.iter().flatten().filter(|other| **other != value);
                let mut others = others.filter(|other| self.contents.contains(**other));
                others.any(|other| self.shape(Some(*other)).contains(self.tokens))
            })
        };
        let after = |value: ValueId| self.readers(value).flat_map(|reader| reader.outputs.clone()).collect();
        let in_place = |value: ValueId| {
            let readers = self.readers(value).filter(|reader| is_elementwise(&reader.op));
            readers.flat_map(|reader| reader.outputs.clone()).collect()
        };
        let is_filled = |value: ValueId| self.readers(value).any(|reader| self.fills(reader, value, axis));
        depth_first(*taken, after).any(meets_tokens) || depth_first(*taken, in_place).any(is_filled)
    }

    /// The axis along which a node takes some of the tokens.
    fn taken(&self, node: &Node) -> Option<usize> {
        let rank = self.shape(node.input(0)).len();
        let axes = match node.op.name() {
            _ if !node.op.domain().is_empty() => return None,
            "Slice" => match node.input(3) {
                Some(_) => self.ints(node, 3)?,
                None => (0..self.shape(node.input(1)).first()?.known()? as i64).collect(),
            },
            "Gather" | "GatherElements" | "Split" => vec![node.op.int("axis").unwrap_or_default()],
            "GatherND" => {
                let before = node.op.int("batch_dims").unwrap_or_default();
                let tuple = self.shape(node.input(1)).last()?.known()? as i64;
                (before..before + tuple).collect()
            }
            _ => return None,
        };
        let axis = axes.into_iter().find(|axis| self.is_of_tokens(node, 0, *axis))?;
        let axis = resolve_axis(axis, rank).ok()?;
        // As many from the first on are all of them.
        let all =
            node.op.is("Slice") && self.shape(node.outputs.first().copied()).get(axis) == Some(self.tokens);
        (!all).then_some(axis)
    }

    /// What reads a value outside of attentions for its numbers. What stands behind a state goes on where the last call ended,
    /// and what is put back where it was taken from has not moved.
    fn readers(&self, value: ValueId) -> impl Iterator<Item = &Node> {
        let nodes = self.graph.value(value).uses.iter().filter_map(|user| match user {
            Use::Node { node, .. } => Some(self.graph.node(*node)),
            Use::GraphOutput(_) => None,
        });
        nodes.filter(|node| {
            let is_continued = node.op.is("Concat") && self.has_past(node);
            node.origin != self.own
                && !is_continued
                && !["Shape", "Size", "ScatterND", "ScatterElements"].iter().any(|op| node.op.is(op))
        })
    }

    fn has_past(&self, node: &Node) -> bool {
        node.inputs.iter().flatten().any(|v| past_of(self.graph, *v).is_some())
    }

    /// Whether a node puts others beside a value, along an axis.
    fn fills(&self, node: &Node, value: ValueId, axis: usize) -> bool {
        let rank = self.shape(Some(value)).len();
        match node.op.name() {
            "Concat" => node.op.int("axis").is_some_and(|at| resolve_axis(at, rank) == Ok(axis)),
            "Pad" => self
                .ints(node, 1)
                .is_some_and(|pads| pads.len() == 2 * rank && (pads[axis] != 0 || pads[rank + axis] != 0)),
            _ => false,
        }
    }

    /// Floats of the same shape in any call that some of `nodes` read beside contents, and that differ by how many tokens
    /// the call has.
    fn lengths(&self, nodes: &[NodeId]) -> BTreeSet<ValueId> {
        let nodes = nodes.iter().map(|id| self.graph.node(*id)).filter(|node| is_elementwise(&node.op));
        let read = nodes.flat_map(|node| node.inputs.iter().flatten().copied());
        let beside: BTreeSet<ValueId> = read.filter(|v| self.may_be_length(*v)).collect();
        beside.into_iter().filter(|v| self.differs(*v) == Some(true)).collect()
    }

    fn may_be_length(&self, value: ValueId) -> bool {
        let is_float = self.graph.value(value).ty.dtype.is_some_and(DType::is_float);
        // What is made of constants alone may be a weight, and is the same in any call.
        let is_computed = self.given.contains(value) && !self.contents.contains(value);
        is_float && is_computed && !self.shape(Some(value)).contains(self.tokens)
    }

    fn differs(&self, value: ValueId) -> Option<bool> {
        let at = |time: usize| -> Option<Array> {
            let trial = Trial { past: 0, time, left: 0, right: 0 };
            evaluate(self.graph, &[value], &trial).ok()?.pop()
        };
        let [short, long] = LENGTHS.map(at);
        let (short, long) = (short?, long?);
        Some(short.shape() == long.shape() && short.to_f64() != long.to_f64())
    }
}

/// Tokens of two calls.
const LENGTHS: [usize; 2] = [11, 13];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// The name of the node that is found behind a product of `[batch, sequence, 4]`; `lines` make `%y` of `%x`.
    fn found(lines: &str) -> Option<String> {
        let graph = parse(&format!(
            r#"graph "g" {{
  input %input_ids: i64[batch, sequence]
  input %attention_mask: i64[batch, past + sequence]
  input %past_key_values.0.key: f32[batch, past, 4]
  weight %table: f32[9, 4] = random(1)
  weight %w: f32[4, 4] = random(2)
  const %one: i64[] = [1]
  const %half: f32[] = [0.5]
  const %row: f32[1, 1, 4] = [0.0, 0.0, 0.0, 0.0]
  %tokens = Gather(%table, %input_ids)
  %x = MatMul(%tokens, %w)
  %size = Shape(%input_ids) {{start: 1, end: 2}}
  %length = Cast(%size) {{to: "f32"}}
{lines}
  output "y" %y
}}"#
        ));
        let graph = graph.expect("it parses");
        let nodes = looks_back(&graph, "own", &Dim::sym("sequence"));
        nodes.first().map(|node| graph.node(*node).name.clone())
    }

    #[test]
    fn what_takes_several_tokens_is_found() {
        for lines in [
            "  %y = CumSum(%x, %one) \"it\"",
            "  %y = ReduceMean(%x) {axes: [1], keepdims: 1} \"it\"",
            "  %y = ReduceMax(%x) {axes: [-2], keepdims: 0} \"it\"",
            "  %y = Softmax(%x) {axis: 1} \"it\"",
            "  %y = LayerNormalization(%x, %row) {axis: 1} \"it\"",
            "  %t = Transpose(%x) {perm: [0, 2, 1]}\n  %y = MatMul(%t, %x) \"it\"",
            "  %t = Transpose(%x) {perm: [0, 2, 1]}\n  weight %k: f32[4, 4, 2] = random(3)\n  %y = Conv(%t, %k) \"it\"",
            "  %y = Concat(%x, %x) {axis: 1} \"it\"",
            "  const %pads: i64[6] = [0, 1, 0, 0, -1, 0]\n  %y = Pad(%x, %pads) \"it\"",
            "  %y = Einsum(%x, %x) {equation: \"bij,bkj->bk\"} \"it\"",
            "  %y = Div(%x, %length) \"it\"",
            "  %part = Mul(%length, %half)\n  %y = Add(%x, %part) \"it\"",
        ] {
            assert_eq!(found(lines).as_deref(), Some("it"), "{lines}");
        }
    }

    /// A token and the one before it, as it is written in several ways.
    const SHIFTED: [&str; 5] = [
        "  %before = Slice(%x, %none, %minus, %one_axis) \"it\"
  %shifted = Concat(%first, %before) {axis: 1}
  %y = Add(%x, %shifted)",
        "  %before = Slice(%x, %none, %minus, %one_axis) \"it\"
  const %pads: i64[6] = [0, 1, 0, 0, 0, 0]
  %y = Pad(%before, %pads)",
        "  %before = Slice(%x, %none, %minus, %one_axis) \"it\"
  %half_of = Mul(%before, %half)
  %y = Concat(%first, %half_of) {axis: 1}",
        "  %last = Slice(%x, %minus, %end, %one_axis) \"it\"
  %y = Sub(%x, %last)",
        "  const %places: i64[2] = [0, -1]
  %some = Gather(%x, %places) {axis: 1} \"it\"
  %t = Transpose(%some) {perm: [0, 2, 1]}
  %y = MatMul(%x, %t)",
    ];

    const BOUNDS: &str = "  const %none: i64[1] = [0]
  const %minus: i64[1] = [-1]
  const %end: i64[1] = [9223372036854775807]
  const %one_axis: i64[1] = [1]
  const %first: f32[1, 1, 4] = [0.0, 0.0, 0.0, 0.0]
";

    #[test]
    fn what_moves_tokens_is_found() {
        for lines in SHIFTED {
            assert_eq!(found(&format!("{BOUNDS}{lines}")).as_deref(), Some("it"), "{lines}");
        }
    }

    #[test]
    fn what_takes_the_last_token_or_goes_on_from_a_state_is_not() {
        for lines in [
            "  %last = Slice(%x, %minus, %end, %one_axis)\n  %y = MatMul(%last, %w)",
            "  const %at: i64[] = [-1]\n  %last = Gather(%x, %at) {axis: 1}\n  %y = MatMul(%last, %w)",
            "  %before = Slice(%x, %none, %minus, %one_axis)
  %shifted = Concat(%past_key_values.0.key, %before) {axis: 1}
  %y = Add(%x, %shifted)",
            "  const %two: i64[1] = [2]
  %left = Slice(%x, %none, %two, %two)
  %right = Slice(%x, %two, %end, %two)
  %y = Concat(%right, %left) {axis: -1}",
            "  %y = Slice(%x, %none, %size, %one_axis)",
        ] {
            assert_eq!(found(&format!("{BOUNDS}{lines}")), None, "{lines}");
        }
    }

    #[test]
    fn what_takes_each_token_by_itself_is_not() {
        for lines in [
            "  const %two: i64[] = [2]\n  %y = CumSum(%x, %two)",
            "  %y = ReduceMean(%x) {axes: [-1], keepdims: 1}",
            "  %y = Softmax(%x) {axis: -1}",
            "  %y = LayerNormalization(%x, %row) {axis: -1}",
            "  %t = Transpose(%x) {perm: [0, 2, 1]}\n  weight %k: f32[4, 4, 1] = random(3)\n  %y = Conv(%t, %k)",
            "  %y = Concat(%past_key_values.0.key, %x) {axis: 1}",
            "  %y = Concat(%x, %x) {axis: 2}",
            "  const %pads: i64[6] = [0, 0, 1, 0, 0, 0]\n  %y = Pad(%x, %pads)",
            "  %same = Div(%length, %length)\n  %y = Mul(%x, %same)",
            "  %y = Reshape(%x, %size)",
        ] {
            assert_eq!(found(lines), None, "{lines}");
        }
    }
}
