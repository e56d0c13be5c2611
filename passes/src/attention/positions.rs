//! Positions that a graph counts by itself, from its cache, its mask or its sequence, become the input
//! `position_ids`: a graph whose cache is a state of fixed size cannot count what came before.
//!
//! Like masks, positions are found by evaluating: walking back from the rotary cosines and the position
//! tables, the first value that holds `past..past + time` in every row of every trial is replaced, for
//! that consumer only.

use super::lengths::{LONG, as_length, last_change, longest, read_by};
use super::lower::by_token::is_elementwise;
use super::position_tables;
use super::trial::{Sizes, Trial, is_padding_input};
use crate::ir::eval::{Array, eval};
use crate::ir::graph::{Def, Graph, Node, NodeId, Use, ValueId};
use crate::ir::patch::Patch;
use crate::ir::shape::Dim;
use crate::ir::walk::{ValueSet, computed, depth_first_from};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, POSITIONS};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const TRIALS: [Trial; 4] = [
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
    let ids = graph.input(IDS).filter(|ids| graph.value(*ids).ty.rank() == Some(2));
    let (Some(ids), None) = (ids, graph.input(POSITIONS)) else { return Moved::default() };
    let trials: Vec<&Trial> = TRIALS.iter().filter(|t| cached || t.past == 0).collect();
    let mut moved = by_form(graph, &trials, ids);
    match position_tables::move_to_input(graph, &trials) {
        Ok(false) => moved,
        // Nothing is left that the notes are about, or `counted_anew` finds it.
        Ok(true) => Moved { added: vec![POSITIONS.to_owned()], notes: vec![] },
        Err(error) => {
            moved.notes.push(format!("the graph goes on counting its positions: {error}"));
            moved
        }
    }
}

/// The same of what computes with positions as it is known to be done.
fn by_form(graph: &mut Graph, trials: &[&Trial], ids: ValueId) -> Moved {
    let mut search = Search::new(graph, trials);
    search.run();
    if search.found.is_empty() {
        return Moved { added: vec![], notes: search.notes };
    }
    let notes = search.notes.clone();
    match search.replaced(ids) {
        Ok(changed) => {
            *graph = changed;
            Moved { added: vec![POSITIONS.to_owned()], notes }
        }
        Err(reason) => {
            let note = format!("the graph goes on counting its positions: {reason}");
            Moved { added: vec![], notes: notes.into_iter().chain([note]).collect() }
        }
    }
}

/// Values that depend on what tokens, states or other float inputs hold. Their shapes do not.
fn read_contents(graph: &Graph) -> ValueSet {
    let holds = |v: &&ValueId| {
        let value = graph.value(**v);
        value.name == IDS || value.ty.dtype.is_none_or(DType::is_float)
    };
    what_reads(graph, graph.inputs().iter().filter(holds).copied().collect())
}

/// Values that depend on what these inputs hold, themselves among them.
fn what_reads(graph: &Graph, inputs: ValueSet) -> ValueSet {
    let mut found = inputs;
    for node in graph.order().into_iter().map(|id| graph.node(id)) {
        let reads = |v: &ValueId| {
            // The shape of an inner value would take the whole model to evaluate.
            let only_its_shape = node.op.is("Shape") && matches!(graph.value(*v).def, Def::Input);
            found.contains(*v) && !only_its_shape
        };
        if node.inputs.iter().flatten().any(reads) {
            found.extend(&node.outputs);
        }
    }
    found
}

/// Tokens of the calls in which positions show: what follows the length of a call has tokens along it.
pub(super) const LENGTHS: [usize; 2] = [11, 13];

/// What a search for positions that begin again at every call came to.
#[derive(Debug, Default)]
pub(super) struct Recounted {
    /// A value that differs from token to token by nothing but their places in a call.
    pub found: Option<ValueId>,
    /// Values of which it is not known, and why.
    pub notes: Vec<String>,
}

/// Looks for a value that differs from token to token by nothing but their places in a call, and is read beside what
/// the tokens hold. Nodes of the rule `own` know what they count. `fixed` is how many tokens every call has, where that
/// is a number and no input holds positions, which may then be constants.
pub(super) fn counted_anew(graph: &Graph, own: &str, fixed: Option<u64>) -> Recounted {
    let mut found = Recounted::default();
    let beside = beside_contents(graph, own, fixed);
    let values: Vec<ValueId> = beside.keys().copied().collect();
    // All at once where that works, as they are computed from the same values.
    let mut together = at_both_lengths(graph, &values).ok().map(Vec::into_iter);
    for (value, rows) in beside {
        let arrays = match together.as_mut().and_then(Iterator::next) {
            Some(arrays) => Ok(arrays),
            None => at_both_lengths(graph, &[value]).map(|mut all| all.swap_remove(0)),
        };
        match arrays.and_then(|arrays| varies(graph, value, arrays, rows)) {
            Ok(true) => return Recounted { found: Some(value), ..found },
            Ok(false) => {}
            Err(reason) => found.notes.push(format!(
                "whether {:?} counts tokens anew at every call is not known: {reason}",
                graph.value(value).name
            )),
        }
    }
    if let Some(tokens) = fixed {
        found.notes.push(format!(
            "every call has {tokens} tokens, and no input says where they stand: positions that the model holds as constants begin again at every call"
        ));
    }
    found
}

/// Values that may hold positions: what the tokens hold is read beside them, and they do not depend on it. With each
/// goes how many rows it has, where that is the number of tokens of every call.
pub(super) fn beside_contents(
    graph: &Graph,
    own: &str,
    fixed: Option<u64>,
) -> BTreeMap<ValueId, Option<u64>> {
    let is_padding = |v: &ValueId| is_padding_input(graph, *v);
    let contents = what_reads(graph, graph.inputs().iter().copied().filter(|v| !is_padding(v)).collect());
    let given = computed(graph);
    let mut beside: BTreeMap<ValueId, Option<u64>> = BTreeMap::new();
    for node in graph.order().into_iter().map(|id| graph.node(id)).filter(|node| node.origin != own) {
        if node.op.is("Shape") || !node.inputs.iter().flatten().any(|v| contents.contains(*v)) {
            continue;
        }
        for value in node.inputs.iter().flatten().filter(|v| !contents.contains(**v)) {
            let rows = fixed.filter(|tokens| has_row_for_each(graph, node, *value, *tokens));
            // Constants differ from place to place as they like, unless they have a row for each token.
            let is_counted = given.contains(*value) && graph.producer(*value).is_some();
            if is_counted || rows.is_some() {
                let known = beside.entry(*value).or_default();
                *known = known.or(rows);
            }
        }
    }
    beside
}

/// Whether `node` takes the rows of `value` with so many of what it gives. The last axis is that of the features.
fn has_row_for_each(graph: &Graph, node: &Node, value: ValueId, tokens: u64) -> bool {
    let shape = |v: ValueId| graph.value(v).ty.shape.as_deref();
    let (Some(own), Some(after)) = (shape(value), node.outputs.first().and_then(|v| shape(*v))) else {
        return false;
    };
    let pairs = own.iter().rev().zip(after.iter().rev()).skip(1);
    is_elementwise(&node.op)
        && pairs.into_iter().any(|(own, after)| *own == Dim::Known(tokens) && own == after)
}

/// Each value in a short call and in a longer one.
fn at_both_lengths(graph: &Graph, values: &[ValueId]) -> Result<Vec<[Numbers; 2]>, String> {
    let (short, long) = (at_length(graph, values, LENGTHS[0])?, at_length(graph, values, LENGTHS[1])?);
    Ok(short.into_iter().zip(long).map(|(short, long)| [short, long]).collect())
}

pub(super) type Numbers = ndarray::ArrayD<f64>;

fn at_length(graph: &Graph, values: &[ValueId], time: usize) -> Result<Vec<Numbers>, String> {
    let arrays = evaluate(graph, values, &Trial { past: 0, time, left: 0, right: 0 })?;
    arrays.into_iter().map(|array| numbers_of(&array)).collect()
}

pub(super) fn numbers_of(array: &Array) -> Result<Numbers, String> {
    Numbers::from_shape_vec(array.shape(), array.to_f64()).map_err(|e| e.to_string())
}

/// Whether a value differs from token to token, if not in a short and in a longer call, then in a long one.
fn varies(graph: &Graph, value: ValueId, arrays: [Numbers; 2], rows: Option<u64>) -> Result<bool, String> {
    if varies_by_token(&arrays, rows)? {
        return Ok(true);
    }
    let [short, longer] = arrays;
    let follows: Vec<bool> = short.shape().iter().zip(longer.shape()).map(|(a, b)| a != b).collect();
    if !follows.contains(&true) {
        return Ok(false);
    }
    for most in long_calls(graph, value) {
        let sizes =
            short.shape().iter().zip(&follows).map(|(size, follows)| if *follows { most } else { *size });
        if most > LONG + MORE && sizes.product::<usize>() > MOST_NUMBERS {
            continue;
        }
        let at = |time: usize| at_length(graph, &[value], time);
        let Ok((_, mut long)) = longest(LENGTHS[1], most, at) else { continue };
        if varies_by_token(&[short.clone(), long.swap_remove(0)], rows)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// More tokens than the last place at which something changes, so that the change shows.
const MORE: usize = 2;
/// Of the largest value that is worked out for a long call.
const MOST_NUMBERS: usize = 1 << 22;

/// Tokens of calls in which everything shows that `value` makes of places, as far as what is given is not too large then.
pub(super) fn long_calls(graph: &Graph, value: ValueId) -> BTreeSet<usize> {
    let changes = |v: ValueId| match graph.as_scalar(v) {
        Some(number) => as_length(number),
        None => last_change(graph.as_const(v)?),
    };
    let numbers = read_by(graph, value, None).filter_map(changes).filter(|n| *n > LONG);
    let sizes = Sizes::of(graph);
    let is_small = |time: &usize| {
        let trial = Trial { past: 0, time: *time, left: 0, right: 0 };
        let given = graph.inputs().iter().map(|v| sizes.dims(graph, *v, &trial).iter().product::<usize>());
        *time == LONG + MORE || given.sum::<usize>() <= MOST_NUMBERS
    };
    numbers.chain([LONG]).map(|n| n + MORE).filter(is_small).collect()
}

/// Whether a value, of a short and of a longer call, differs along an axis that is as long as a call, or along that of
/// its `rows`.
fn varies_by_token([short, long]: &[Numbers; 2], rows: Option<u64>) -> Result<bool, String> {
    if short.ndim() != long.ndim() {
        return Err(format!("it has {} axes in one call and {} in another", short.ndim(), long.ndim()));
    }
    let differs = |axis: usize| {
        let mut along = long.axis_iter(ndarray::Axis(axis));
        along.next().is_some_and(|first| along.any(|other| other != first))
    };
    let follows = |axis: usize| {
        let (short, long) = (short.shape()[axis], long.shape()[axis]);
        short != long || rows == Some(long as u64)
    };
    Ok((0..long.ndim()).any(|axis| follows(axis) && differs(axis)))
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
    contents: ValueSet,
    trials: &'g [&'g Trial],
    roles: BTreeMap<ValueId, Role>,
    /// Consumers of positions, producers first.
    found: Vec<NodeId>,
    /// A value that is the positions, but without an axis for the batch.
    flat: Option<ValueId>,
    /// Nodes that take rows without an axis for the batch, or a part, of a table, and the table: rows of it for each of the
    /// batch can stand there.
    spread: BTreeMap<NodeId, ValueId>,
    /// Of those found, where such rows meet what has a batch.
    meets: BTreeSet<NodeId>,
    notes: Vec<String>,
}

/// Rows of a table on their way to what has a batch.
struct Rows {
    table: ValueId,
    /// What is computed from them on the way.
    values: Vec<ValueId>,
    /// Where they meet it.
    meets: BTreeSet<NodeId>,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph, trials: &'g [&'g Trial]) -> Self {
        let contents = read_contents(graph);
        Self {
            graph,
            contents,
            trials,
            roles: BTreeMap::new(),
            found: vec![],
            flat: None,
            spread: BTreeMap::new(),
            meets: BTreeSet::new(),
            notes: vec![],
        }
    }

    fn run(&mut self) {
        for id in self.graph.order() {
            let node = self.graph.node(id);
            if let Some(rows) = self.part_of_a_table(node) {
                self.take(id, rows);
                continue;
            }
            let Some(index) = self.index_of(node) else { continue };
            self.flat = None;
            if self.role(index) != Role::Unrelated {
                self.found.push(id);
            } else if let Some(rows) = self.spread_of(node).filter(|_| self.flat == Some(index)) {
                self.take(id, rows);
            } else if let Some(flat) = self.flat {
                let name = &self.graph.value(flat).name;
                self.notes.push(format!(
                    "the graph goes on counting the positions at {:?}: {name:?} has no axis for the batch",
                    node.name
                ));
            }
        }
    }

    /// The rows `past..past + time` that a node cuts out of a table: `[positions, width]`, with an axis of one before it or not.
    fn part_of_a_table(&self, node: &Node) -> Option<Rows> {
        let table = self.graph.as_const(node.input(0).filter(|_| node.op.is("Slice"))?)?;
        let width = width_of(table.dims()).filter(|_| table.dtype().is_float())?;
        let rows = self.spread_of(node)?;
        let numbers = table.to_f64();
        let is_cut = |trial: &Trial| {
            let found = evaluate(self.graph, &node.outputs[..1], trial).ok().and_then(|mut all| all.pop());
            let wanted = numbers.get(trial.past * width..trial.total() * width);
            found.zip(wanted).is_some_and(|(found, wanted)| found.to_f64() == wanted)
        };
        self.trials.iter().all(|trial| is_cut(trial)).then_some(rows)
    }

    /// What a node takes of its table, if each of the batch may have rows of its own there: all that reads them computes number
    /// by number with what has a batch.
    fn spread_of(&self, node: &Node) -> Option<Rows> {
        let mut rows = Rows { table: node.input(0)?, values: vec![node.outputs[0]], meets: BTreeSet::new() };
        let mut at = 0;
        while let Some(value) = rows.values.get(at).copied() {
            at += 1;
            for user in &self.graph.value(value).uses {
                let Use::Node { node, .. } = *user else { return None };
                if self.has_batch_beside(node, value) {
                    rows.meets.insert(node);
                } else if self.keeps_rows(node, value) {
                    rows.values.push(self.graph.node(node).outputs[0]);
                } else {
                    return None;
                }
            }
        }
        Some(rows)
    }

    fn take(&mut self, id: NodeId, Rows { table, values, meets }: Rows) {
        self.spread.insert(id, table);
        self.roles.extend(values.into_iter().map(|value| (value, Role::Derived)));
        self.found.extend(meets.difference(&self.meets));
        self.meets.extend(meets);
    }

    fn has_batch_beside(&self, node: NodeId, value: ValueId) -> bool {
        let graph = self.graph;
        let node = graph.node(node);
        let has_batch = |v: ValueId| graph.value(v).ty.rank() == Some(3) && self.contents.contains(v);
        is_elementwise(&node.op) && others(node, value).any(has_batch)
    }

    /// Whether a node computes with constants of one row at most.
    fn keeps_rows(&self, node: NodeId, value: ValueId) -> bool {
        let graph = self.graph;
        let node = graph.node(node);
        let is_row = |v: ValueId| graph.as_const(v).is_some_and(|tensor| tensor.dims().len() < 2);
        is_elementwise(&node.op) && others(node, value).all(is_row)
    }

    /// What a node that may consume positions takes them, or angles computed from them, from.
    fn index_of(&self, node: &Node) -> Option<ValueId> {
        let index = match node.op.name() {
            "Cos" | "Sin" => node.input(0)?,
            "Gather" => {
                let table = self.graph.as_const(node.input(0)?)?;
                // Rows of whole numbers are floats in 8 bits.
                let is_of_rows = table.dtype().is_float() || matches!(table.dtype(), DType::U8 | DType::I8);
                node.input(1).filter(|_| is_of_rows && table.dims().len() == 2)?
            }
            _ => return None,
        };
        Some(index).filter(|v| !self.contents.contains(*v))
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
        if self.contents.contains(value) || node.op.is("Shape") {
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
        let axis = axes.first().copied().filter(|first| axes.iter().all(|axis| axis == first))?;
        self.goes_on(value).then_some(axis)
    }

    /// Whether it counts in a long call too, or as far as the table goes that it is read from.
    fn goes_on(&self, value: ValueId) -> bool {
        let call = |time: usize| Trial { past: 0, time, left: 0, right: 0 };
        let counts = |time: usize| self.axis_in(value, &call(time)).ok_or(());
        let Some(most) = long_calls(self.graph, value).last().copied() else { return true };
        let Ok((last, _)) = longest(LENGTHS[0], most, counts) else { return false };
        let beyond = || evaluate(self.graph, &[value], &call(last + 1));
        last == most || beyond().map_or(true, |arrays| !arrays[0].shape().contains(&(last + 1)))
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
        let made = |user: &Use| match user {
            Use::Node { node, .. } => self.graph.node(*node).outputs.as_slice(),
            Use::GraphOutput(_) => &[],
        };
        let ends =
            |user: &Use| made(user).is_empty() || made(user).iter().any(|v| self.contents.contains(*v));
        let uses = |value: ValueId| self.graph.value(value).uses.iter();
        // What meets a batch was looked at as it was found.
        let consumers = self.found.iter().filter(|n| !self.meets.contains(n));
        let starts = consumers.flat_map(|n| self.graph.node(*n).outputs.iter().copied());
        let onwards = |value| uses(value).filter(|user| !ends(user)).flat_map(made).copied().collect();
        depth_first_from(starts, onwards).filter(|value| uses(*value).any(ends)).collect()
    }

    /// A row for each of the batch may stand where one row stood for all.
    fn compare(&self, old: ValueId, changed: &Graph, new: ValueId) -> Result<(), String> {
        for trial in self.trials {
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

/// What a node reads besides a value.
fn others(node: &Node, value: ValueId) -> impl Iterator<Item = ValueId> {
    node.inputs.iter().flatten().copied().filter(move |other| *other != value)
}

/// The width of a table of positions.
fn width_of(dims: &[u64]) -> Option<usize> {
    match dims {
        [_, width] | [1, _, width] => usize::try_from(*width).ok(),
        _ => None,
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

pub(super) fn evaluate(graph: &Graph, wanted: &[ValueId], trial: &Trial) -> Result<Vec<Array>, String> {
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
        let positions = p.input(POSITIONS, DType::I64, shape);
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

    /// The rows of a table, for each of the batch its own.
    fn rows(&mut self, table: ValueId) -> ValueId {
        let table = match self.p.rank(table) {
            3 => self.p.squeeze(table, &[0]),
            _ => table,
        };
        self.p.gather(table, self.positions, 0)
    }

    /// The node that makes `value` once more, on the new input.
    fn rewritten(&mut self, value: ValueId) -> ValueId {
        if let Some(new) = self.written.get(&value) {
            return *new;
        }
        let graph = self.search.graph;
        let Some((id, _)) = graph.producer(value) else { return value };
        let node = graph.node(id);
        if let Some(table) = self.search.spread.get(&id) {
            self.p.set_scope(&node.name);
            let new = self.rows(*table);
            self.written.insert(value, new);
            return new;
        }
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
        assert_eq!((moved.added, moved.notes), (vec![POSITIONS.to_owned()], vec![]));
        let output = |graph: &Graph, trial| {
            evaluate(graph, &[graph.output("y").expect("y")], trial).expect("it runs").swap_remove(0)
        };
        for trial in &TRIALS {
            assert!(spread_equals(&output(&before, trial), &output(&after, trial)), "{lines}");
        }
        let input = after.value(after.input(POSITIONS).expect("the input"));
        assert_eq!(input.ty, after.value(after.input(IDS).expect("ids")).ty);
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
        let given = [(IDS, ids([3, 4, 3, 4])), (POSITIONS, ids([0, 1, 7, 8]))];
        let both = crate::testing::run(&after, &given).remove("y").expect("y").to_f64();
        let given = [(IDS, ids([3, 4, 3, 4])), (POSITIONS, ids([7, 8, 0, 1]))];
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
        assert_eq!(move_to_input(&mut graph, false).added, [POSITIONS]);
    }

    /// As dynamic quantisation leaves the table of positions.
    #[test]
    fn positions_of_a_table_in_8_bits_become_an_input() {
        let lines = "  const %bytes: i8[5, 1] = [1, 2, 3, 4, 5]
  %range = Range(%zero, %time, %one)
  %row = Unsqueeze(%range) {axes: [0]}
  %rows = Gather(%bytes, %row) {axis: 0}
  %places = Cast(%rows) {to: \"f32\"}";
        let mut graph = model(lines);
        assert_eq!(move_to_input(&mut graph, false).added, [POSITIONS]);
        let mut words = model(&lines.replace("i8[5, 1]", "i64[5, 1]"));
        assert!(move_to_input(&mut words, false).added.is_empty());
    }

    /// As a GPT of one's own has it: `wpe(torch.arange(past, total))`, and a scale.
    const FLAT: &str = "  %range = Range(%past, %total, %one)
  %rows = Gather(%table, %range) {axis: 0} \"rows\"
  %places = Mul(%rows, %frequency)";

    fn flat() -> String {
        format!("  const %frequency: f32[] = [0.5]\n{FLAT}")
    }

    #[test]
    fn rows_of_a_table_without_an_axis_for_the_batch_get_one() {
        let after = changed(&flat());
        assert!(!uses(&after, "past_key"));
    }

    #[test]
    fn a_part_of_a_table_becomes_its_rows() {
        let cut = "  %end = Unsqueeze(%total) {axes: [0]}
  const %first: i64[1] = [0]
  %places = Slice(%table, %cached, %end, %first)";
        changed(cut);
        let one_row = cut.replace("%table, ", "%tables, ").replace("%first)", "%axis)");
        changed(&format!("  weight %tables: f32[1, 20, 4] = random(2)\n{one_row}"));
        // The rows of the first tokens, whatever came before.
        let again = cut.replace("%cached, %end", "%first, %given");
        assert_eq!(kept(&again), Vec::<String>::new());
    }

    #[test]
    fn positions_without_a_place_for_the_batch_are_noted() {
        let folded = format!(
            "{}\n  const %order: i64[2] = [-1, 4]\n  %places = Reshape(%scaled, %order)",
            flat().replace("%places", "%scaled")
        );
        let want =
            "the graph goes on counting the positions at \"rows\": \"range\" has no axis for the batch";
        assert_eq!(kept(&folded), [want]);
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

    /// What [`counted_anew`] finds, by name, and what it does not know.
    fn recounted(lines: &str, fixed: Option<u64>) -> (Option<String>, Vec<String>) {
        let graph = model(lines);
        let found = counted_anew(&graph, "test", fixed);
        (found.found.map(|value| graph.value(value).name.clone()), found.notes)
    }

    #[test]
    fn what_counts_the_tokens_of_a_call_is_found_at_any_length() {
        assert_eq!(recounted(COUNTED_FROM_THE_MASK, None), (Some("places".to_owned()), vec![]));
    }

    /// Steps that no short call shows, as of a temperature that grows with the text.
    #[test]
    fn what_counts_the_tokens_of_a_long_call_is_found() {
        let steps = |tokens: u64| {
            format!(
                "  %range = Range(%zero, %time, %one)
  const %tokens: i64[] = [{tokens}]
  %steps = Div(%range, %tokens)
  %numbers = Cast(%steps) {{to: \"f32\"}}
  %places = Unsqueeze(%numbers) {{axes: [1]}}"
            )
        };
        for tokens in [100, 8192] {
            assert_eq!(recounted(&steps(tokens), None), (Some("places".to_owned()), vec![]));
        }
        let none = steps(100).replace("Div(%range, %tokens)", "Sub(%range, %range)");
        assert_eq!(recounted(&none, None), (None, vec![]));
    }

    #[test]
    fn positions_that_stop_somewhere_are_counted_as_before() {
        for last in [100, 5000] {
            let lines = format!(
                "  const %last: i64[] = [{last}]
  %range = Range(%past, %total, %one)
  %row = Unsqueeze(%range) {{axes: [0]}}
  %held = Min(%row, %last)
  %places = Gather(%table, %held) {{axis: 0}}"
            );
            assert!(print(&changed(&lines)).contains("= Min(%"), "{last}");
        }
    }

    #[test]
    fn positions_of_a_short_table_are_positions() {
        let rows: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        let lines = format!(
            "  const %rows: i64[1, 40] = [{}]
  const %second: i64[1] = [1]
  const %none: i64[1] = [0]
  %row = Slice(%rows, %none, %given, %second)
  %places = Gather(%table, %row) {{axis: 0}}",
            rows.join(", ")
        );
        let mut graph = model(&lines);
        assert_eq!(move_to_input(&mut graph, false).added, [POSITIONS]);
    }

    #[test]
    fn an_axis_that_keeps_its_size_has_no_tokens() {
        // 44 numbers for each of the batch, as of heads of 88: a multiple of a length that was tried.
        let frequencies: Vec<String> = (0..44).map(|i| format!("{i}.0")).collect();
        let lines = format!(
            "  const %own: f32[1, 44, 1] = [{}]
  const %rest: i64[2] = [-1, 1]
  %batch = Shape(%input_ids) {{start: 0, end: 1}}
  %target = Concat(%batch, %rest) {{axis: 0}}
  const %as_written: i64[3] = [1, 44, 1]
  %bounds = Max(%target, %as_written)
  %spread = Expand(%own, %bounds)
  %row = Unsqueeze(%input_ids) {{axes: [1]}}
  %numbers = Cast(%row) {{to: \"f32\"}}
  %angles = MatMul(%spread, %numbers)
  output \"angles\" %angles
  %places = Gather(%table, %input_ids) {{axis: 0}}",
            frequencies.join(", ")
        );
        assert_eq!(recounted(&lines, None), (None, vec![]));
    }

    #[test]
    fn what_cannot_be_evaluated_is_told() {
        let lines = "  %range = Range(%zero, %time, %one)\n  %places = vendor.Places(%range) \"places\"";
        let note = "whether \"places\" counts tokens anew at every call is not known: node `places` (vendor.Places): the operator is not known";
        assert_eq!(recounted(lines, None), (None, vec![note.to_owned()]));
    }

    #[test]
    fn an_input_that_is_there_is_left_alone() {
        let text = print(&model(ROTARY))
            .replacen("  input", "  input %position_ids: i64[batch, sequence]\n  input", 1)
            .replace("elided", "random(1)");
        let mut graph = parse(&text).expect("it parses");
        assert!(move_to_input(&mut graph, true).added.is_empty());
        assert!(!uses(&graph, POSITIONS) && uses(&graph, "past_key"));
    }
}
