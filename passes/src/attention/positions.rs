//! Positions that a graph counts by itself, from its cache, its mask or its sequence, become the input
//! `position_ids`: a graph whose cache is a state of fixed size cannot count what came before.
//!
//! Like masks, positions are found by evaluating: walking back from the rotary cosines and the position
//! tables, the first value that holds `past..past + time` in every row of every trial is replaced, for
//! that consumer only.

use super::trial::{Sizes, Trial, is_padding_input};
use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Def, Graph, Node, NodeId, Use, ValueId};
use crate::ir::patch::Patch;
use dijiang_format::dtype::DType;
use std::collections::{BTreeMap, BTreeSet};

const NAME: &str = "position_ids";

const TRIALS: [Trial; 4] = [
    Trial { past: 0, time: 5, left: 0, right: 0 },
    Trial { past: 0, time: 3, left: 0, right: 0 },
    Trial { past: 3, time: 4, left: 0, right: 0 },
    Trial { past: 5, time: 3, left: 0, right: 0 },
];

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// The new input, where there is one.
    pub added: Vec<String>,
    /// Positions that the graph goes on counting by itself, and why.
    pub notes: Vec<String>,
}

/// Makes the positions of a decoder an input, unless they are one.
pub(super) fn move_to_input(graph: &mut Graph, cached: bool) -> Moved {
    let ids = graph.input("input_ids").filter(|ids| graph.value(*ids).ty.rank() == Some(2));
    let (Some(ids), None) = (ids, graph.input(NAME)) else { return Moved::default() };
    let mut search = Search::new(graph, cached);
    search.run();
    if search.found.is_empty() {
        return Moved { added: vec![], notes: search.notes };
    }
    let notes = search.notes.clone();
    match search.replaced(ids) {
        Ok(changed) => {
            *graph = changed;
            Moved { added: vec![NAME.to_owned()], notes }
        }
        Err(reason) => {
            let note = format!("the graph goes on counting its positions: {reason}");
            Moved { added: vec![], notes: notes.into_iter().chain([note]).collect() }
        }
    }
}

/// Values that depend on what tokens, states or other float inputs hold. Their shapes do not.
fn read_contents(graph: &Graph) -> BTreeSet<ValueId> {
    let holds = |v: &&ValueId| {
        let value = graph.value(**v);
        value.name == "input_ids" || value.ty.dtype.is_none_or(DType::is_float)
    };
    what_reads(graph, graph.inputs().iter().filter(holds).copied().collect())
}

/// Values that depend on what these inputs hold, themselves among them.
fn what_reads(graph: &Graph, inputs: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let mut found = inputs;
    for node in graph.order().into_iter().map(|id| graph.node(id)) {
        let reads = |v: &ValueId| {
            // The shape of an inner value would take the whole model to evaluate.
            let only_its_shape = node.op.is("Shape") && matches!(graph.value(*v).def, Def::Input);
            found.contains(v) && !only_its_shape
        };
        if node.inputs.iter().flatten().any(reads) {
            found.extend(&node.outputs);
        }
    }
    found
}

/// Tokens of a trial in which positions show: no shape has so many dims.
const MANY: usize = 11;

/// A value that differs from token to token by nothing but their places in a call, and is read beside what the tokens
/// hold. Nodes of the rule `own` know what they count.
pub(super) fn counted_anew(graph: &Graph, own: &str) -> Option<ValueId> {
    let is_padding = |v: &ValueId| is_padding_input(graph, *v);
    let contents = what_reads(graph, graph.inputs().iter().copied().filter(|v| !is_padding(v)).collect());
    // Constants differ from place to place as they like.
    let given = depends_on_inputs(graph);
    let mut beside = BTreeSet::new();
    for node in graph.order().into_iter().map(|id| graph.node(id)).filter(|node| node.origin != own) {
        if !node.op.is("Shape") && node.inputs.iter().flatten().any(|v| contents.contains(v)) {
            let plain = node.inputs.iter().flatten().filter(|v| given.contains(v) && !contents.contains(v));
            beside.extend(plain.copied().filter(|v| graph.producer(*v).is_some()));
        }
    }
    let trial = Trial { past: 0, time: MANY, left: 0, right: 0 };
    beside.into_iter().find(|value| {
        evaluate(graph, &[*value], &trial).is_ok_and(|arrays| arrays.iter().any(varies_by_token))
    })
}

fn depends_on_inputs(graph: &Graph) -> BTreeSet<ValueId> {
    let mut found: BTreeSet<ValueId> = graph.inputs().iter().copied().collect();
    for node in graph.order().into_iter().map(|id| graph.node(id)) {
        if node.inputs.iter().flatten().any(|v| found.contains(v)) {
            found.extend(&node.outputs);
        }
    }
    found
}

fn varies_by_token(array: &Array) -> bool {
    let Ok(numbers) = ndarray::ArrayD::from_shape_vec(array.shape(), array.to_f64()) else { return false };
    let along = |axis: usize| {
        let first = numbers.index_axis(ndarray::Axis(axis), 0);
        numbers.axis_iter(ndarray::Axis(axis)).any(|other| other != first)
    };
    (0..numbers.ndim()).any(|axis| {
        let size = numbers.shape()[axis];
        size > 0 && size.is_multiple_of(MANY) && along(axis)
    })
}

/// How a value before a consumer relates to the positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Unrelated,
    /// It is the positions, with time on this axis.
    Positions(usize),
    /// It is computed from them.
    Derived,
}

struct Search<'g> {
    graph: &'g Graph,
    contents: BTreeSet<ValueId>,
    trials: Vec<&'static Trial>,
    roles: BTreeMap<ValueId, Role>,
    /// Consumers of positions, producers first.
    found: Vec<NodeId>,
    /// A value that is the positions, but without an axis for the batch.
    flat: Option<ValueId>,
    notes: Vec<String>,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph, cached: bool) -> Self {
        let trials = TRIALS.iter().filter(|t| cached || t.past == 0).collect();
        let contents = read_contents(graph);
        Self { graph, contents, trials, roles: BTreeMap::new(), found: vec![], flat: None, notes: vec![] }
    }

    fn run(&mut self) {
        for id in self.graph.order() {
            let node = self.graph.node(id);
            let Some(index) = self.index_of(node) else { continue };
            self.flat = None;
            if self.role(index) != Role::Unrelated {
                self.found.push(id);
            } else if let Some(flat) = self.flat {
                let name = &self.graph.value(flat).name;
                self.notes.push(format!(
                    "the graph goes on counting the positions at {:?}: {name:?} has no axis for the batch",
                    node.name
                ));
            }
        }
    }

    /// What a node that may consume positions takes them, or angles computed from them, from.
    fn index_of(&self, node: &Node) -> Option<ValueId> {
        let index = match node.op.name() {
            "Cos" | "Sin" => node.input(0)?,
            "Gather" => {
                let table = self.graph.as_const(node.input(0)?)?;
                node.input(1).filter(|_| table.dtype().is_float() && table.dims().len() == 2)?
            }
            _ => return None,
        };
        Some(index).filter(|v| !self.contents.contains(v))
    }

    fn role(&mut self, value: ValueId) -> Role {
        if let Some(role) = self.roles.get(&value) {
            return *role;
        }
        let role = self.find_role(value);
        self.roles.insert(value, role);
        role
    }

    fn find_role(&mut self, value: ValueId) -> Role {
        let graph = self.graph;
        let Some((node, _)) = graph.producer(value) else { return Role::Unrelated };
        let node = graph.node(node);
        if self.contents.contains(&value) || node.op.is("Shape") {
            return Role::Unrelated;
        }
        match self.time_axis(value) {
            Some(0) if graph.value(value).ty.rank() == Some(1) => self.flat = Some(value),
            Some(axis) if axis > 0 => return Role::Positions(axis),
            _ => {}
        }
        // All of them, since any may have to be written anew.
        let roles: Vec<Role> = node.inputs.iter().flatten().map(|v| self.role(*v)).collect();
        match roles.iter().all(|role| *role == Role::Unrelated) {
            true => Role::Unrelated,
            false => Role::Derived,
        }
    }

    /// The axis along which `value` counts the positions, the same in all trials.
    fn time_axis(&self, value: ValueId) -> Option<usize> {
        let axes: Option<Vec<usize>> = self.trials.iter().map(|t| self.axis_in(value, t)).collect();
        let axes = axes?;
        axes.first().copied().filter(|first| axes.iter().all(|axis| axis == first))
    }

    fn axis_in(&self, value: ValueId, trial: &Trial) -> Option<usize> {
        let array = evaluate(self.graph, &[value], trial).ok()?.pop()?;
        if matches!(array, Array::B(_)) {
            return None;
        }
        let shape = array.shape();
        let axis = shape.iter().rposition(|n| *n == trial.time)?;
        let is_row = |(i, n): (usize, &usize)| i == axis || *n == 1 || (i == 0 && *n == 2);
        let inner: usize = shape[axis + 1..].iter().product();
        let numbers = array.to_f64();
        let expected = |i: usize| (trial.past + (i / inner) % trial.time) as f64;
        let counts = numbers.iter().enumerate().all(|(i, x)| *x == expected(i));
        (counts && shape.iter().enumerate().all(is_row)).then_some(axis)
    }

    /// The graph with the input in place, checked to compute the same positions.
    fn replaced(&self, ids: ValueId) -> Result<Graph, String> {
        let mut changed = self.graph.clone();
        let mut patch = Patch::new(self.graph, "positions");
        let mut writer = PositionWriter::new(&mut patch, self, ids);
        let mut pairs: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for node in &self.found {
            let old = self.graph.node(*node).outputs[0];
            pairs.insert(old, writer.rewritten(old));
        }
        pairs.iter().for_each(|(old, new)| patch.replace(*old, *new));
        changed.apply(patch.finish()).map_err(|e| e.to_string())?;
        changed.refresh_types().map_err(|e| e.to_string())?;
        for old in self.last_values() {
            let new = pairs.get(&old).copied().unwrap_or(old);
            self.compare(old, &changed, new)?;
        }
        Ok(changed)
    }

    /// The values computed from the consumers that meet what reads contents, or leave the graph.
    fn last_values(&self) -> BTreeSet<ValueId> {
        let (mut seen, mut last) = (BTreeSet::new(), BTreeSet::new());
        let mut stack: Vec<ValueId> =
            self.found.iter().flat_map(|n| self.graph.node(*n).outputs.iter().copied()).collect();
        while let Some(value) = stack.pop() {
            if !seen.insert(value) {
                continue;
            }
            for user in &self.graph.value(value).uses {
                let outputs = match user {
                    Use::Node { node, .. } => self.graph.node(*node).outputs.as_slice(),
                    Use::GraphOutput(_) => &[],
                };
                match outputs.iter().any(|v| self.contents.contains(v)) || outputs.is_empty() {
                    true => drop(last.insert(value)),
                    false => stack.extend(outputs),
                }
            }
        }
        last
    }

    /// A row for each of the batch may stand where one row stood for all.
    fn compare(&self, old: ValueId, changed: &Graph, new: ValueId) -> Result<(), String> {
        for trial in &self.trials {
            let before = evaluate(self.graph, &[old], trial)?.swap_remove(0);
            let after = evaluate(changed, &[new], trial)?.swap_remove(0);
            if !spread_equals(&before, &after) {
                let name = &self.graph.value(old).name;
                return Err(format!(
                    "with a row of them for each of the batch, {name:?} would not be the same"
                ));
            }
        }
        Ok(())
    }
}

/// Whether `before`, spread over the shape of `after`, is `after`.
fn spread_equals(before: &Array, after: &Array) -> bool {
    let floats = |a: &Array| ndarray::ArrayD::from_shape_vec(a.shape(), a.to_f64()).ok();
    let (Some(before), Some(after)) = (floats(before), floats(after)) else { return false };
    before.broadcast(after.shape()).is_some_and(|spread| {
        before.ndim() == after.ndim() && spread.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-9)
    })
}

fn evaluate(graph: &Graph, wanted: &[ValueId], trial: &Trial) -> Result<Vec<Array>, String> {
    let sizes = Sizes::of(graph);
    let padding = graph.inputs().iter().copied().find(|v| is_padding_input(graph, *v));
    let mut given = BTreeMap::new();
    for input in graph.inputs() {
        let array = sizes.fill(graph, *input, padding, trial).map_err(|miss| miss.reason)?;
        given.insert(*input, array);
    }
    eval(graph, &given, wanted).map_err(|e| e.to_string())
}

/// Writes the way from the new input to the consumers.
struct PositionWriter<'p, 'g, 's> {
    p: &'p mut Patch<'g>,
    search: &'s Search<'g>,
    positions: ValueId,
    written: BTreeMap<ValueId, ValueId>,
}

impl<'p, 'g, 's> PositionWriter<'p, 'g, 's> {
    fn new(p: &'p mut Patch<'g>, search: &'s Search<'g>, ids: ValueId) -> Self {
        let shape = search.graph.value(ids).ty.shape.clone().unwrap_or_default();
        let positions = p.input(NAME, DType::I64, shape);
        Self { p, search, positions, written: BTreeMap::new() }
    }

    fn input(&mut self, value: ValueId) -> ValueId {
        match self.search.roles.get(&value) {
            Some(Role::Positions(axis)) => self.placed(value, *axis),
            Some(Role::Derived) => self.rewritten(value),
            Some(Role::Unrelated) | None => value,
        }
    }

    /// The positions in the shape and the element type of `old`.
    fn placed(&mut self, old: ValueId, axis: usize) -> ValueId {
        let rank = self.p.rank(old);
        let axes: Vec<i64> = (1..rank).filter(|a| *a != axis).map(|a| a as i64).collect();
        let placed = match axes.is_empty() {
            true => self.positions,
            false => self.p.unsqueeze(self.positions, &axes),
        };
        let dtype = self.p.dtype(old);
        self.p.cast(placed, dtype)
    }

    /// The node that makes `value` once more, on the new input.
    fn rewritten(&mut self, value: ValueId) -> ValueId {
        if let Some(new) = self.written.get(&value) {
            return *new;
        }
        let graph = self.search.graph;
        let Some((id, _)) = graph.producer(value) else { return value };
        let node = graph.node(id);
        let inputs: Vec<Option<ValueId>> = node.inputs.iter().map(|v| v.map(|v| self.input(v))).collect();
        self.p.set_scope(&node.name);
        let outputs = self.p.node_outputs(node.op.clone(), &inputs, node.outputs.len());
        self.written.extend(node.outputs.iter().copied().zip(outputs));
        self.written[&value]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::ir::verify::verify;

    /// A model of one multiplication: embedded tokens times `%places`, which the `lines` end in.
    fn model(lines: &str) -> Graph {
        let text = format!(
            r#"graph "positions" {{
  input %input_ids: i64[batch, sequence]
  input %attention_mask: i64[batch, past + sequence]
  input %past_key: f32[batch, 2, past, 4]
  weight %embed: f32[20, 4] = random(1)
  weight %table: f32[20, 4] = random(2)
  const %frequencies: f32[1, 4, 1] = [1.0, 0.3, 0.1, 0.03]
  const %zero: i64[] = [0]
  const %one: i64[] = [1]
  const %two: i64[] = [2]
  const %axis: i64[1] = [1]
  const %all: i64[1] = [9223372036854775807]
  %cached = Shape(%past_key) {{start: 2, end: 3}}
  %past = Squeeze(%cached) {{axes: [0]}}
  %given = Shape(%input_ids) {{start: 1, end: 2}}
  %time = Squeeze(%given) {{axes: [0]}}
  %total = Add(%past, %time)
  %x = Gather(%embed, %input_ids) {{axis: 0}}
{lines}
  %y = Mul(%x, %places)
  output "y" %y
}}"#
        );
        parse(&text).expect("it parses")
    }

    const ROTARY: &str = "  %range = Range(%past, %total, %one)
  %row = Unsqueeze(%range) {axes: [0, 1]}
  %numbers = Cast(%row) {to: \"f32\"}
  %angles = MatMul(%frequencies, %numbers)
  %transposed = Transpose(%angles) {perm: [0, 2, 1]}
  %places = Cos(%transposed)";

    const COUNTED_FROM_THE_MASK: &str = "  %counts = CumSum(%attention_mask, %one) {exclusive: 0, reverse: 0}
  %tokens = Mul(%counts, %attention_mask)
  %places_all = Sub(%tokens, %one)
  %late = Slice(%places_all, %cached, %all, %axis)
  %index = Add(%late, %two)
  %places = Gather(%table, %index) {axis: 0}";

    fn moved(graph: &Graph) -> (Graph, Moved) {
        let mut changed = graph.clone();
        let moved = move_to_input(&mut changed, true);
        assert_eq!(verify(&changed), []);
        (changed, moved)
    }

    /// The graph with its positions as an input, which must compute the same.
    fn changed(lines: &str) -> Graph {
        let before = model(lines);
        let (after, moved) = moved(&before);
        assert_eq!((moved.added, moved.notes), (vec![NAME.to_owned()], vec![]));
        let output = |graph: &Graph, trial| {
            evaluate(graph, &[graph.output("y").expect("y")], trial).expect("it runs").swap_remove(0)
        };
        for trial in &TRIALS {
            assert!(spread_equals(&output(&before, trial), &output(&after, trial)), "{lines}");
        }
        let input = after.value(after.input(NAME).expect("the input"));
        assert_eq!(input.ty, after.value(after.input("input_ids").expect("ids")).ty);
        after
    }

    /// Whether a node still reads the input `name`.
    fn uses(graph: &Graph, name: &str) -> bool {
        graph.input(name).is_some_and(|v| graph.value(v).uses.iter().any(|u| matches!(u, Use::Node { .. })))
    }

    #[test]
    fn a_range_after_a_cache() {
        let after = changed(ROTARY);
        assert!(!uses(&after, "past_key"));
    }

    #[test]
    fn time_before_the_last_axis() {
        let lines = ROTARY
            .replace("axes: [0, 1]", "axes: [0, 2]")
            .replace("%frequencies, %numbers", "%numbers, %across")
            .replace("perm: [0, 2, 1]", "perm: [0, 1, 2]");
        let after = changed(&format!("  %across = Transpose(%frequencies) {{perm: [0, 2, 1]}}\n{lines}"));
        assert!(!uses(&after, "past_key"));
    }

    #[test]
    fn a_mask_that_is_counted() {
        let after = changed(COUNTED_FROM_THE_MASK);
        assert!(!uses(&after, "past_key") && !uses(&after, "attention_mask"));
    }

    #[test]
    fn each_row_has_its_own_positions() {
        let after = changed(ROTARY);
        let ids = |rows: [i64; 4]| Array::from_i64(&[2, 2], rows.to_vec()).expect("ids");
        let given = [("input_ids", ids([3, 4, 3, 4])), (NAME, ids([0, 1, 7, 8]))];
        let both = crate::testing::run(&after, &given).remove("y").expect("y").to_f64();
        let given = [("input_ids", ids([3, 4, 3, 4])), (NAME, ids([7, 8, 0, 1]))];
        let swapped = crate::testing::run(&after, &given).remove("y").expect("y").to_f64();
        assert_eq!([&both[..8], &both[8..]], [&swapped[8..], &swapped[..8]]);
        assert_ne!(both[..8], both[8..]);
    }

    #[test]
    fn what_else_reads_the_positions_keeps_them() {
        // The mask reads the very value that is cast for the rotary angles.
        let mask = "  %keys = Range(%zero, %total, %one)
  %queries = Unsqueeze(%row) {axes: [3]}
  %open = LessOrEqual(%keys, %queries)
  output \"open\" %open";
        let after = changed(&format!("{ROTARY}\n{mask}"));
        let shape = &after.value(after.output("open").expect("open")).ty.shape;
        assert_eq!(shape.as_ref().map(|s| s[0].known()), Some(Some(1)));
        assert!(uses(&after, "past_key"));
    }

    /// The notes on a graph that must stay as it is.
    fn kept(lines: &str) -> Vec<String> {
        let before = model(lines);
        let (after, moved) = moved(&before);
        assert_eq!(moved.added, Vec::<String>::new(), "{lines}");
        assert_eq!(print(&after), print(&before));
        moved.notes
    }

    #[test]
    fn numbers_that_are_no_positions() {
        let range = |bounds: &str| {
            let lines = ROTARY.replace("%past, %total, %one", bounds).replace("%places", "%wave");
            format!("{lines}\n  output \"wave\" %wave\n  %places = Gather(%table, %zero) {{axis: 0}}")
        };
        let cases = [
            ("they do not go on after the cache", range("%zero, %time, %one")),
            ("they are two apart", range("%past, %total, %two")),
            ("they count the keys", range("%zero, %total, %one")),
            ("they begin too late", range("%one, %total, %one")),
            ("they are tokens", "  %places = Gather(%table, %input_ids) {axis: 0}".to_owned()),
        ];
        for (what, lines) in cases {
            assert_eq!(kept(&lines), Vec::<String>::new(), "{what}");
        }
    }

    #[test]
    fn a_count_that_restarts_is_positions_where_nothing_comes_before() {
        let mut graph = model(&ROTARY.replace("%past, %total, %one", "%zero, %time, %one"));
        assert_eq!(move_to_input(&mut graph, false).added, [NAME]);
    }

    #[test]
    fn positions_without_a_place_for_the_batch_are_noted() {
        let flat = "  %range = Range(%past, %total, %one)
  %places = Gather(%table, %range) {axis: 0} \"places\"";
        let want =
            "the graph goes on counting the positions at \"places\": \"range\" has no axis for the batch";
        assert_eq!(kept(flat), [want]);
    }

    #[test]
    fn positions_that_are_folded_into_one_row_are_noted() {
        let folded = format!(
            "{}\n  const %one_row: i64[3] = [1, -1, 4]\n  %places = Reshape(%wave, %one_row)",
            ROTARY.replace("%places", "%wave")
        );
        let want = "the graph goes on counting its positions: with a row of them for each of the batch, \"places\" would not be the same";
        assert_eq!(kept(&folded), [want]);
    }

    #[test]
    fn an_input_that_is_there_is_left_alone() {
        let text = print(&model(ROTARY))
            .replacen("  input", "  input %position_ids: i64[batch, sequence]\n  input", 1)
            .replace("elided", "random(1)");
        let mut graph = parse(&text).expect("it parses");
        assert!(move_to_input(&mut graph, true).added.is_empty());
        assert!(!uses(&graph, NAME) && uses(&graph, "past_key"));
    }
}
