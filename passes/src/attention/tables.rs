//! How many tokens a graph has rows for in its constant tables: positions that are looked up, rotary cosines, and masks that
//! are cut to the length of a call.
//!
//! Like masks, rows are found by evaluating: the rows that a call of some tokens reads, and one of a few more. A table
//! of which every further token reads a further row ends somewhere.

use super::trial::{Sizes, Trial, is_padding_input};
use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::walk::{computed, depth_first, inputs_of};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, POSITIONS};
use std::collections::BTreeMap;

/// Tokens of the calls that are compared.
const SHORT: u64 = 11;
const LONG: u64 = 13;
/// Longer tables are as good as endless.
const MOST_ROWS: u64 = 4096;
/// What stands for every token: no padding, which is counted otherwise.
const TOKEN: i64 = 5;

/// The most tokens that a text can have by the tables of a graph; `None` where none of them ends.
pub fn most_tokens(graph: &Graph) -> Option<u64> {
    let given = computed(graph);
    let tables = graph.order().into_iter().filter_map(|id| table(graph, graph.node(id)));
    let read = tables.filter(|table| given.contains(table.rows) && is_light(graph, table.rows));
    let mut seen: BTreeMap<(ValueId, u64), Option<u64>> = BTreeMap::new();
    let ends = read.filter_map(|table| {
        *seen.entry((table.rows, table.length)).or_insert_with(|| table.most_tokens(graph))
    });
    ends.min()
}

/// A constant of so many rows, of which a computed value tells those that are read.
struct Table {
    length: u64,
    rows: ValueId,
    /// Whether the value tells the row after the last.
    is_end: bool,
}

fn table(graph: &Graph, node: &Node) -> Option<Table> {
    let dims = graph.as_const(node.input(0)?)?.dims();
    match node.op.name() {
        _ if !node.op.domain().is_empty() => None,
        "Gather" => {
            let axis = resolve_axis(node.op.int("axis")?, dims.len()).ok()?;
            Some(Table { length: dims[axis], rows: node.input(1)?, is_end: false })
        }
        "Slice" => {
            let axes = graph.as_const(node.input(3)?)?.to_i64()?;
            let [axis] = axes.as_slice() else { return None };
            let axis = resolve_axis(*axis, dims.len()).ok()?;
            Some(Table { length: dims[axis], rows: node.input(2)?, is_end: true })
        }
        _ => None,
    }
}

/// Whether a value is worked out from sizes and whole numbers, without a weight of the model.
fn is_light(graph: &Graph, value: ValueId) -> bool {
    let is_weight = |v: ValueId| {
        graph.as_const(v).is_some_and(|tensor| tensor.dtype().is_float() && tensor.dims().len() > 1)
    };
    let before = |v: ValueId| match graph.producer(v) {
        // The shape of an inner value would take the whole model to evaluate.
        Some((id, _)) if graph.node(id).op.is("Shape") => {
            let read = inputs_of(graph, v);
            let is_inner = |v: &ValueId| graph.producer(*v).is_some();
            read.into_iter().filter(is_inner).collect()
        }
        _ => inputs_of(graph, v),
    };
    depth_first(value, before).all(|v| {
        let is_float_input =
            graph.inputs().contains(&v) && graph.value(v).ty.dtype.is_none_or(DType::is_float);
        !is_weight(v) && !is_float_input
    })
}

impl Table {
    fn most_tokens(&self, graph: &Graph) -> Option<u64> {
        let (short, long) = (self.rows_read(graph, SHORT)?, self.rows_read(graph, LONG)?);
        if long.checked_sub(short)? != LONG - SHORT {
            return None;
        }
        // Of a table whose first rows are for no token, fewer are left.
        let most = (self.length + SHORT).checked_sub(short).filter(|most| (1..=MOST_ROWS).contains(most))?;
        // As far as a distance is told apart, it may grow by one for each token too.
        let ends = self.rows_read(graph, most)? == self.length
            && self.rows_read(graph, most + 1).is_none_or(|rows| rows > self.length);
        ends.then_some(most)
    }

    /// How many rows there must be for a call of so many tokens.
    fn rows_read(&self, graph: &Graph, tokens: u64) -> Option<u64> {
        let rows = evaluate(graph, self.rows, tokens)?;
        let last = rows.to_f64().into_iter().fold(f64::NEG_INFINITY, f64::max);
        let count = last as i64 + i64::from(!self.is_end);
        u64::try_from(count).ok()
    }
}

fn evaluate(graph: &Graph, wanted: ValueId, tokens: u64) -> Option<Array> {
    let sizes = Sizes::of(graph);
    let trial = Trial { past: 0, time: tokens as usize, left: 0, right: 0 };
    let padding = graph.inputs().iter().copied().find(|v| is_padding_input(graph, *v));
    let mut given = BTreeMap::new();
    for input in graph.inputs() {
        let filled = sizes.fill(graph, *input, padding, &trial).ok()?;
        given.insert(*input, told(graph, *input, filled, padding)?);
    }
    eval(graph, &given, &[wanted]).ok()?.pop()
}

/// Tokens that are all alike, and zeros for what says something else of them.
fn told(graph: &Graph, input: ValueId, filled: Array, padding: Option<ValueId>) -> Option<Array> {
    let value = graph.value(input);
    let keeps = padding == Some(input) || value.name == POSITIONS || !matches!(filled, Array::I(_));
    let number = if value.name == IDS { TOKEN } else { 0 };
    let dims = filled.shape();
    match keeps {
        true => Some(filled),
        false => Array::from_i64(dims, vec![number; dims.iter().product()]).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    fn most(lines: &str) -> Option<u64> {
        let text = format!(
            r#"graph "tables" {{
  input %input_ids: i64[batch, time]
  input %attention_mask: i64[batch, time]
  weight %words: f32[20, 4] = random(1)
  weight %table: f32[40, 4] = random(2)
  const %zero: i64[] = [0]
  const %one: i64[] = [1]
  const %front: i64[1] = [0]
  const %axis: i64[1] = [0]
  %x = Gather(%words, %input_ids) {{axis: 0}}
  %length = Shape(%input_ids) {{start: 1, end: 2}}
  %time = Squeeze(%length) {{axes: [0]}}
{lines}
  %y = Add(%x, %rows)
  output "y" %y
}}"#
        );
        most_tokens(&parse(&text).expect("it parses"))
    }

    #[test]
    fn a_table_ends_where_its_rows_do() {
        let counted = "  %places = Range(%zero, %time, %one)\n  %rows = Gather(%table, %places) {axis: 0}";
        assert_eq!(most(counted), Some(40));
        assert_eq!(most("  %rows = Slice(%table, %front, %length, %axis)"), Some(40));
        let after_two = "  const %two: i64[] = [2]
  %counts = CumSum(%attention_mask, %one) {exclusive: 0, reverse: 0}
  %places = Add(%counts, %one)
  %rows = Gather(%table, %places) {axis: 0}";
        assert_eq!(most(after_two), Some(38));
    }

    #[test]
    fn what_does_not_follow_the_tokens_has_no_end() {
        assert_eq!(most("  %rows = Gather(%table, %input_ids) {axis: 0}"), None);
        let clamped = "  const %last: i64[] = [39]
  %all = Range(%zero, %time, %one)
  %places = Min(%all, %last)
  %rows = Gather(%table, %places) {axis: 0}";
        assert_eq!(most(clamped), None);
    }
}
