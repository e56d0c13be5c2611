//! Inputs that hold what earlier calls left, and grow by the tokens of each.

use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;
use dijiang_format::ring::RingState;

/// Where a cache has its tokens, whose shape is `[batch, kv heads, past, head dim]`.
const TOKENS: usize = 2;

/// Whether an input is a cache of keys or values, each of the shape `[batch, kv heads, past, head dim]`, by its name or by what
/// becomes of it. A ring is joined with new tokens too, and does not grow.
pub fn is_cache(graph: &Graph, input: ValueId) -> bool {
    let value = graph.value(input);
    let axis =
        if value.name.contains("past") { joined_along(graph, input) } else { grows_along(graph, input) };
    value.ty.rank() == Some(4) && axis == Some(TOKENS) && RingState::of(&value.name).is_none()
}

/// The axis along which an input grows from call to call: new tokens are joined to it, and that is an output of the graph.
pub fn grows_along(graph: &Graph, input: ValueId) -> Option<usize> {
    let value = graph.value(input);
    let axis = joined_along(graph, input)?;
    let is_open = matches!(value.ty.shape.as_ref()?.get(axis), Some(Dim::Sym(_) | Dim::Unknown));
    let is_kept = joins(graph, input).into_iter().any(|node| {
        let uses = &graph.value(node.outputs[0]).uses;
        uses.iter().any(|user| matches!(user, Use::GraphOutput(_)))
    });
    (is_open && is_kept && value.ty.dtype.is_none_or(DType::is_float)).then_some(axis)
}

fn joined_along(graph: &Graph, input: ValueId) -> Option<usize> {
    let rank = graph.value(input).ty.rank()? as i64;
    let axis = joins(graph, input).first()?.op.int("axis")?;
    usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()
}

/// The nodes that join something behind an input.
fn joins(graph: &Graph, input: ValueId) -> Vec<&Node> {
    first_readers(graph, input).into_iter().filter(|node| node.op.is("Concat")).collect()
}

/// The nodes that read an input first of all, itself, cast or rounded: what comes in f32 may be computed with in half precision
/// or in whole numbers.
pub fn first_readers(graph: &Graph, input: ValueId) -> Vec<&Node> {
    let first = |value: ValueId| {
        graph.value(value).uses.iter().filter_map(|user| match user {
            Use::Node { node, slot: 0 } => Some(graph.node(*node)),
            _ => None,
        })
    };
    let changes = |node: &&Node| ["Cast", "DynamicQuantizeLinear"].iter().any(|op| node.op.is(op));
    let changed = first(input).filter(changes).flat_map(|node| first(node.outputs[0]));
    first(input).chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    const GRAPH: &str = r#"graph "g" {
  input %k_cache: f32[batch, 2, cached, 4]
  input %new: f32[batch, 2, time, 4]
  %k = Concat(%k_cache, %new) {axis: -2}
  %e = Exp(%k)
  output "e" %e
  output "kept" %k
}"#;

    fn of(text: &str) -> (bool, Option<usize>) {
        let graph = parse(text).expect("a graph");
        let input = graph.inputs()[0];
        (is_cache(&graph, input), grows_along(&graph, input))
    }

    #[test]
    fn a_cache_is_known_by_its_name_or_by_what_becomes_of_it() {
        assert_eq!(of(GRAPH), (true, Some(2)));
        let passed_on_elsewhere = GRAPH.replace("  output \"kept\" %k\n", "");
        assert_eq!(of(&passed_on_elsewhere), (false, None));
        assert_eq!(of(&passed_on_elsewhere.replace("k_cache", "past_k")), (true, None));
        let tokens_first = GRAPH.replace("2, cached, 4", "cached, 2, 4").replace("2, time, 4", "time, 2, 4");
        assert_eq!(of(&tokens_first.replace("axis: -2", "axis: 1")), (false, Some(1)));
        assert_eq!(of(&GRAPH.replace("cached", "8")), (false, None), "a window of fixed size does not grow");
        assert_eq!(of(&GRAPH.replace("k_cache", "past_key_values.0.ring_key.8.0")), (false, Some(2)));
        assert_eq!(of(&GRAPH.replace("Concat(%k_cache, %new)", "Concat(%new, %k_cache)")), (false, None));
    }
}
