//! Matches: `Gather` of all heads of `[batch, heads, tokens, head_dim]` in their order, each several times in a row, and `Concat`
//! of one value with itself along an axis of length 1
//! Becomes: `Expand`, as exporters mostly repeat key heads
//! Exact: yes
//! Declines when: some head is left out, or comes more often than another; what is joined has fewer than four axes

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct RepeatedHeads;

impl GraphRule for RepeatedHeads {
    fn name(&self) -> &'static str {
        "repeated_heads"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.name() {
            _ if !node.op.domain().is_empty() => None,
            "Gather" => picked(w, node),
            "Concat" => joined(w, node),
            _ => None,
        })
    }
}

/// `[batch, heads, tokens, head_dim]` as `[batch, heads · each, tokens, head_dim]`.
fn picked(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let (x, rows) = (node.input(0)?, node.input(1)?);
    let [_, Dim::Known(heads), _, Dim::Known(head_dim)] = *w.graph.value(x).ty.shape.as_deref()? else {
        return None;
    };
    let rows = w.graph.as_const(rows).filter(|_| node.op.int("axis") == Some(1))?;
    let each = repeats(&rows.to_i64().filter(|_| rows.dims().len() == 1)?, heads)?;
    let x = w.current(x);
    Some(vec![w.patch.repeat_heads(x, [heads, each, head_dim])])
}

/// How often each of so many comes, where all come in their order and equally often, and more than once.
fn repeats(rows: &[i64], heads: u64) -> Option<u64> {
    let each = (rows.len() as u64)
        .checked_div(heads)
        .filter(|each| *each > 1 && each * heads == rows.len() as u64)?;
    (0..).zip(rows).all(|(at, row): (u64, &i64)| u64::try_from(*row) == Ok(at / each)).then_some(each)
}

fn joined(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let x = node.input(0)?;
    let count = node.inputs.len();
    let axis = joined_axis(w.graph, node, x)?;
    if count < 2 || !node.inputs.iter().all(|input| *input == Some(x)) {
        return None;
    }
    let mut over = vec![1; w.graph.value(x).ty.rank()?];
    over[axis] = count as i64;
    let (x, over) = (w.current(x), w.patch.ints(&over));
    Some(vec![w.patch.expand(x, over)])
}

/// The axis of a join, where heads have one place along it: joined sizes are followed as they are.
fn joined_axis(graph: &Graph, node: &Node, x: ValueId) -> Option<usize> {
    let dims = graph.value(x).ty.shape.as_deref().filter(|dims| dims.len() > 3)?;
    let axis = resolve_axis(node.op.int("axis")?, dims.len()).ok()?;
    (dims[axis] == Dim::Known(1)).then_some(axis)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn heads_that_are_picked_or_joined_are_expanded() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, 2, keys, 8]
  const %rows: i64[6] = [0, 0, 0, 1, 1, 1]
  const %to: i64[4] = [0, 6, -1, 8]
  %y = Gather(%x, %rows) {axis: 1} "y"
  %apart = Unsqueeze(%x) {axes: [2]} "apart"
  %spread = Concat(%apart, %apart, %apart) {axis: 2} "spread"
  %z = Reshape(%spread, %to) "z"
  output "picked" %y
  output "joined" %z
}"#
        ), @r#"
        graph "g" {
          input %x: f32[batch, 2, keys, 8]
          %apart = Unsqueeze(%x) {axes: [2]} "apart": f32[batch, 2, 1, keys, 8]
          const %y/ints: i64[5] = [1, 1, 3, 1, 1]
          %y/Expand:0 = Expand(%apart, %y/ints) "y/Expand": f32[batch, 2, 3, keys, 8]
          const %to: i64[4] = [0, 6, -1, 8]
          %y/Reshape:0 = Reshape(%y/Expand:0, %to) "y/Reshape": f32[batch, 6, keys, 8]
          output "picked" %y/Reshape:0
          output "joined" %y/Reshape:0
        }
        "#);
    }

    #[test]
    fn sizes_are_followed_through_a_join() {
        let text = r#"graph "g" {
  input %x: i64[batch, time]
  const %unit: f32[] = [1.0]
  %length = Shape(%x) {start: 1, end: 2}
  %square = Concat(%length, %length) {axis: 0}
  %y = Expand(%unit, %square) "y"
  output "y" %y
}"#;
        assert!(after(text).contains("f32[time, time]"));
    }

    #[test]
    fn heads_in_another_order_stay() {
        for rows in ["[0, 1, 0, 1]", "[0, 0, 0, 1]", "[1, 1, 0, 0]"] {
            let text = format!(
                "graph \"g\" {{
  input %x: f32[batch, 2, keys, 8]
  const %rows: i64[4] = {rows}
  %y = Gather(%x, %rows) {{axis: 1}} \"y\"
  output \"y\" %y
}}"
            );
            assert!(after(&text).contains("Gather"), "{rows}");
        }
    }
}
