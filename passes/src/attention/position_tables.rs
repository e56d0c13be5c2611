//! Rows of a table by position, whatever a graph makes them with: where a value holds, for each token, the row of one table
//! that stands at the token's place, the input `position_ids` takes the rows.
//!
//! [`positions`](super::positions) goes by what computes with positions. Here it is what comes of it that counts: the
//! table is what the value holds in the longest call that the graph can make, and every trial must hold rows of it.

use super::lengths::longest;
use super::lower::by_token::is_elementwise;
use super::positions::{LENGTHS, Numbers, beside_contents, evaluate, long_calls, numbers_of};
use super::trial::Trial;
use crate::ir::graph::{Graph, Use, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, POSITIONS};
use ndarray::Axis;

/// What a value holds of a table.
struct Rows {
    value: ValueId,
    /// Where its tokens are, behind the axis of the batch.
    axis: usize,
    /// A row for each position: `[positions, …]`, the other axes in their order.
    table: Numbers,
    dtype: DType,
}

/// Has the input `position_ids` take the rows of every such value. Returns whether there are any, and the input is there.
pub(super) fn move_to_input(graph: &mut Graph, trials: &[&Trial]) -> Result<bool, PatchError> {
    let found: Vec<Rows> = candidates(graph).filter_map(|value| rows_of(graph, value, trials)).collect();
    let Some(ids) = graph.input(IDS).filter(|_| !found.is_empty()) else { return Ok(false) };
    let before = graph.clone();
    let mut p = Patch::new(&before, "position-tables");
    let shape = before.value(ids).ty.shape.clone().unwrap_or_default();
    let positions = before.input(POSITIONS).unwrap_or_else(|| p.input(POSITIONS, DType::I64, shape));
    let mut written: Vec<(&Rows, ValueId)> = Vec::new();
    for rows in &found {
        let same = written.iter().find(|(other, _)| other.are_as(rows)).map(|(_, new)| *new);
        let new = match same {
            Some(new) => new,
            None => {
                let new = rows.taken(&mut p, positions);
                written.push((rows, new));
                new
            }
        };
        p.replace(rows.value, new);
    }
    graph.apply(p.finish())?;
    graph.refresh_types()?;
    Ok(true)
}

/// Values of floats that what reads the tokens computes with, number by number.
fn candidates(graph: &Graph) -> impl Iterator<Item = ValueId> {
    let is_float = |v: ValueId| graph.value(v).ty.dtype.is_some_and(DType::is_float);
    let computes =
        |user: &Use| matches!(user, Use::Node { node, .. } if is_elementwise(&graph.node(*node).op));
    let is_met = move |v: &ValueId| is_float(*v) && graph.value(*v).uses.iter().all(computes);
    beside_contents(graph, "", None).into_keys().filter(is_met)
}

/// The table whose rows a value holds, where it ends and every trial has its rows.
fn rows_of(graph: &Graph, value: ValueId, trials: &[&Trial]) -> Option<Rows> {
    let dtype = graph.value(value).ty.dtype?;
    let axis = token_axis(graph, value)?;
    let call = |time: usize| Trial { past: 0, time, left: 0, right: 0 };
    let rows = |trial: &Trial| {
        let found = numbers_of(evaluate(graph, &[value], trial).ok()?.first()?).ok()?;
        (found.shape().get(axis) == Some(&trial.time)).then_some(found)
    };
    let most = long_calls(graph, value).last().copied()?;
    let (last, whole) = longest(LENGTHS[1], most, |time| rows(&call(time)).ok_or(())).ok()?;
    // What goes on for ever is no table.
    let table = (last < most).then(|| by_position(&whole, axis))?;
    let holds = |trial: &&Trial| {
        let wanted = table.slice_axis(Axis(0), (trial.past..trial.total()).into());
        rows(trial).is_some_and(|found| {
            found
                .axis_iter(Axis(0))
                .all(|row| row.view().permuted_axes(first(axis - 1, row.ndim())) == wanted)
        })
    };
    let holds_all = trials.iter().all(holds);
    holds_all.then_some(Rows { value, axis, table, dtype })
}

/// The one axis behind the first that is as long as a call, along which the value differs.
fn token_axis(graph: &Graph, value: ValueId) -> Option<usize> {
    let shapes = LENGTHS.map(|time| {
        let found = evaluate(graph, &[value], &Trial { past: 0, time, left: 0, right: 0 }).ok()?.pop()?;
        Some(found.shape().to_vec())
    });
    let [Some(short), Some(long)] = shapes else { return None };
    let mut axes = (0..short.len().min(long.len())).filter(|axis| short[*axis] != long[*axis]);
    let axis = axes.next().filter(|axis| [short[*axis], long[*axis]] == LENGTHS && *axis > 0)?;
    axes.next().is_none().then_some(axis)
}

/// The axes in an order in which `axis` is the first.
fn first(axis: usize, rank: usize) -> Vec<usize> {
    std::iter::once(axis).chain((0..rank).filter(|other| *other != axis)).collect()
}

/// The first row of the batch, its tokens before all else.
fn by_position(whole: &Numbers, axis: usize) -> Numbers {
    let row = whole.index_axis(Axis(0), 0);
    row.permuted_axes(first(axis - 1, whole.ndim() - 1)).to_owned()
}

impl Rows {
    fn are_as(&self, other: &Self) -> bool {
        self.axis == other.axis && self.dtype == other.dtype && self.table == other.table
    }

    /// The rows that `positions`, `[batch, sequence]`, take, in the shape of the value.
    fn taken(&self, p: &mut Patch<'_>, positions: ValueId) -> ValueId {
        let scope = p.value(self.value).name.clone();
        p.set_scope(&scope);
        let dims: Vec<u64> = self.table.shape().iter().map(|size| *size as u64).collect();
        let numbers: Vec<f32> = self.table.iter().map(|x| *x as f32).collect();
        let table = p.constant("rows", Tensor::from_f32(&dims, &numbers));
        let rows = p.gather(table, positions, 0);
        // `[batch, sequence, …]`: the tokens go back to where they were.
        let before = (2..=self.axis).map(|axis| axis as i64);
        let behind = (self.axis + 1..=dims.len()).map(|axis| axis as i64);
        let perm: Vec<i64> = std::iter::once(0).chain(before).chain([1]).chain(behind).collect();
        let placed = if self.axis == 1 { rows } else { p.transpose(rows, &perm) };
        p.cast(placed, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::positions::{self, TRIALS};
    use crate::ir::text::{parse, print};
    use crate::ir::verify::verify;

    /// Embedded tokens of two heads, `[batch, 2, sequence, 4]`, times the `lines`' `%places`.
    fn model(lines: &str) -> Graph {
        let text = format!(
            r#"graph "tables" {{
  input %input_ids: i64[batch, sequence]
  input %past_key: f32[batch, 2, past, 4]
  weight %embed: f32[20, 4] = random(1)
  weight %table: f32[1, 1, 20, 4] = random(2)
  const %none: i64[1] = [0]
  const %axis: i64[1] = [2]
  const %all: i64[1] = [9223372036854775807]
  const %copies: i64[4] = [1, 2, 1, 1]
  %past = Shape(%past_key) {{start: 2, end: 3}}
  %time = Shape(%input_ids) {{start: 1, end: 2}}
  %total = Add(%past, %time)
  %embedded = Gather(%embed, %input_ids) {{axis: 0}}
  %one = Unsqueeze(%embedded) {{axes: [1]}}
  %x = Tile(%one, %copies)
  %known = Slice(%table, %none, %total, %axis)
{lines}
  %y = Mul(%x, %places)
  output "y" %y
}}"#
        );
        parse(&text).expect("it parses")
    }

    fn moved(lines: &str) -> (Graph, Graph, Vec<String>) {
        let before = model(lines);
        let mut after = before.clone();
        let moved = positions::move_to_input(&mut after, true);
        assert_eq!(verify(&after), []);
        (before, after, moved.added)
    }

    /// As exporters of PyTorch 1.12 have it: rows up to the last token, of which the last are taken.
    const LAST: &str = "  %places = Slice(%known, %past, %all, %axis)";

    #[test]
    fn rows_that_are_cut_out_of_rows() {
        let (before, after, added) = moved(LAST);
        assert_eq!(added, [POSITIONS]);
        let y = |graph: &Graph, trial: &Trial| {
            let y = evaluate(graph, &[graph.output("y").expect("y")], trial).expect("it runs").swap_remove(0);
            numbers_of(&y).expect("numbers")
        };
        for trial in &TRIALS {
            assert_eq!(y(&before, trial), y(&after, trial));
        }
        let cache = after.input("past_key").expect("the cache");
        assert!(after.value(cache).uses.is_empty(), "{}", print(&after));
    }

    #[test]
    fn rows_for_each_of_the_batch() {
        let lines = format!(
            "{}\n  %batch = Shape(%input_ids) {{start: 0, end: 1}}
  const %rest: i64[3] = [1, 1, 1]
  %sizes = Concat(%batch, %rest) {{axis: 0}}
  %places = Expand(%rows, %sizes)",
            LAST.replace("%places", "%rows")
        );
        assert_eq!(moved(&lines).2, [POSITIONS]);
    }

    #[test]
    fn a_table_that_is_taken_twice_is_written_once() {
        let twice = format!(
            "  %again = Slice(%known, %past, %all, %axis)\n  %z = Add(%x, %again)\n  output \"z\" %z\n{LAST}"
        );
        let (_, after, added) = moved(&twice);
        assert_eq!(added, [POSITIONS]);
        assert_eq!(print(&after).matches("= Gather(").count(), 2, "{}", print(&after));
    }

    #[test]
    fn what_holds_no_rows_by_position_stays() {
        let cases = [
            (
                "the first rows, whatever came before",
                "  %places = Slice(%table, %none, %time, %axis)".to_owned(),
            ),
            (
                "no end",
                "  const %row: f32[1, 1, 1, 4] = [1.0, 2.0, 3.0, 4.0]
  const %from: i64[] = [0]
  const %step: i64[] = [1]
  %first = Squeeze(%past) {axes: [0]}
  %last = Squeeze(%total) {axes: [0]}
  %range = Range(%first, %last, %step)
  %numbers = Cast(%range) {to: \"f32\"}
  %column = Unsqueeze(%numbers) {axes: [0, 1, 3]}
  %places = Mul(%column, %row)"
                    .to_owned(),
            ),
            (
                "the keys are counted",
                format!(
                    "  %sum = ReduceSum(%known) {{axes: [2], keepdims: 1}}\n{}
  %places = Mul(%rows, %sum)",
                    LAST.replace("%places", "%rows")
                ),
            ),
            ("something else than a computation reads them", format!("{LAST}\n  output \"places\" %places")),
        ];
        for (what, lines) in cases {
            let (before, after, added) = moved(&lines);
            assert_eq!(added, Vec::<String>::new(), "{what}");
            assert_eq!(print(&after), print(&before), "{what}");
        }
    }
}
