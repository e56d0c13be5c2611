//! Matches: `Gather` of rows of a constant table that a `Slice` has cut behind, as rotary cosines are cut to the length of the
//! cache, by `position_ids` or by numbers that are counted from the front
//! Becomes: `Gather` of rows of the whole table
//! Exact: yes, wherever the model runs: a row behind the cut is none
//! Declines when: the table is cut in front, or rows may be counted from behind

use super::terms::{Term, Terms};
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::tensor::Tensor;
use dijiang_format::names::POSITIONS;

pub(super) struct TableRows;

impl GraphRule for TableRows {
    fn name(&self) -> &'static str {
        "table_rows"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let (cut, rows) = (node.input(0)?, node.input(1)?);
            let axis = resolve_axis(node.op.int("axis")?, w.graph.value(cut).ty.rank()?).ok();
            if !node.op.is("Gather") || !counts_from_the_front(w.graph, &terms, rows) {
                return None;
            }
            let (table, along) = whole(w, cut).filter(|(_, along)| Some(*along) == axis)?;
            let rows = w.current(rows);
            Some(vec![w.patch.gather(table, rows, along as i64)])
        })
    }
}

/// The table that a value is the beginning of, and the axis along which it was cut.
fn whole(w: &mut Sweep<'_>, value: ValueId) -> Option<(ValueId, usize)> {
    let graph = w.graph;
    if let Some(squeeze) = graph.made_by(value, "Squeeze") {
        let axes = squeeze.op.ints("axes")?;
        let (table, along) = whole(w, squeeze.input(0)?)?;
        let rank = w.patch.ty(table).rank()?;
        let places: Vec<usize> =
            axes.iter().map(|axis| resolve_axis(*axis, rank).ok()).collect::<Option<_>>()?;
        let before = places.iter().filter(|place| **place < along).count();
        return (!places.contains(&along)).then(|| (w.patch.squeeze(table, axes), along - before));
    }
    let slice = graph.made_by(value, "Slice")?;
    let table = slice.input(0).filter(|table| graph.as_const(*table).is_some())?;
    Some((table, cut_behind(graph, slice)?))
}

/// The one axis that a `Slice` cuts behind, and not in front.
fn cut_behind(graph: &Graph, slice: &Node) -> Option<usize> {
    let only = |slot: usize, absent: i64| match slice.input(slot) {
        Some(given) => match graph.as_const(given).and_then(Tensor::to_i64)?.as_slice() {
            [one] => Some(*one),
            _ => None,
        },
        None => Some(absent),
    };
    let rank = graph.value(slice.input(0)?).ty.rank()?;
    let axis = resolve_axis(only(3, 0)?, rank).ok()?;
    (only(1, 0)? == 0 && only(4, 1)? == 1).then_some(axis)
}

/// Operators that give the numbers that they are given.
const AROUND: [&str; 5] = ["Cast", "Expand", "Reshape", "Squeeze", "Unsqueeze"];

fn counts_from_the_front(graph: &Graph, terms: &Terms, rows: ValueId) -> bool {
    if let Some(inner) = AROUND.iter().find_map(|op| graph.made_by(rows, op)?.input(0)) {
        return counts_from_the_front(graph, terms, inner);
    }
    let is_no_less = |value: Option<ValueId>, least: i64| match value.and_then(|v| terms.get(v)) {
        Some([Term::Int(n)]) => *n >= least,
        Some([Term::Dim(_) | Term::DimOf(..)]) => least <= 0,
        _ => false,
    };
    match graph.made_by(rows, "Range") {
        Some(range) => is_no_less(range.input(0), 0) && is_no_less(range.input(2), 1),
        None => graph.input(POSITIONS) == Some(rows),
    }
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const TEXT: &str = r#"graph "g" {
  input %position_ids: i64[batch, time]
  input %attention_mask: i64[batch, total]
  weight %cosines: f32[1, 32, 4] = random(1)
  const %front: i64[1] = [0]
  const %rows: i64[1] = [1]
  %length = Shape(%attention_mask) {start: 1, end: 2}
  %cut = Slice(%cosines, %front, %length, %rows)
  %table = Squeeze(%cut) {axes: [0]}
  %y = Gather(%table, %position_ids) {axis: 0} "y"
  output "y" %y
}"#;

    #[test]
    fn rows_are_read_of_the_whole_table() {
        insta::assert_snapshot!(after(TEXT));
        let counted = after(&TEXT.replace(
            "%y = Gather(%table, %position_ids)",
            "%zero = Squeeze(%front) {axes: [0]}
  %one = Squeeze(%rows) {axes: [0]}
  %end = Squeeze(%length) {axes: [0]}
  %counted = Range(%zero, %end, %one)
  %y = Gather(%table, %counted)",
        ));
        assert!(!counted.contains("Slice"), "{counted}");
    }

    #[test]
    fn a_table_that_is_cut_in_front_stays_cut() {
        for (from, to) in [
            ("const %front: i64[1] = [0]", "const %front: i64[1] = [2]"),
            ("const %rows: i64[1] = [1]", "const %rows: i64[1] = [2]"),
            ("input %position_ids: i64", "input %other: i64[batch, time]\n  input %position_ids: i64"),
        ] {
            let text = TEXT.replace(from, to);
            let text = if to.contains("other") {
                text.replace("(%table, %position_ids)", "(%table, %other)")
            } else {
                text
            };
            assert!(after(&text).contains("Slice"), "{to}");
        }
    }
}
