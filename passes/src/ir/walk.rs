//! Walks along the edges of a graph. A walk visits a value once, however many ways lead to it: `Add(x, x)` forty times
//! over is forty values, and 2^40 ways.

use super::graph::{Def, Graph, Use, ValueId};
use std::collections::{BTreeSet, VecDeque};

/// Values that a walk has been to. Most walks are short, and a few values are found faster in a row than in a tree.
#[derive(Default)]
struct Seen {
    first: Vec<ValueId>,
    others: BTreeSet<ValueId>,
}

impl Seen {
    const FEW: usize = 24;

    /// Whether it is new.
    fn insert(&mut self, value: ValueId) -> bool {
        if self.first.contains(&value) {
            return false;
        }
        if self.first.len() < Self::FEW {
            self.first.push(value);
            return true;
        }
        self.others.insert(value)
    }
}

/// `start` and what follows from it by `next`: the first of them, all that follows from that, then the second.
pub(crate) fn depth_first(
    start: ValueId,
    next: impl FnMut(ValueId) -> Vec<ValueId>,
) -> impl Iterator<Item = ValueId> {
    depth_first_from([start], next)
}

/// The same from several values, one after the other.
pub(crate) fn depth_first_from(
    starts: impl IntoIterator<Item = ValueId>,
    mut next: impl FnMut(ValueId) -> Vec<ValueId>,
) -> impl Iterator<Item = ValueId> {
    let (mut seen, mut stack) = (Seen::default(), starts.into_iter().collect::<Vec<_>>());
    stack.reverse();
    std::iter::from_fn(move || {
        loop {
            let value = stack.pop()?;
            if seen.insert(value) {
                stack.extend(next(value).into_iter().rev());
                return Some(value);
            }
        }
    })
}

/// `start` and what follows from it by `next` in so many steps at most, the nearest first.
pub(crate) fn nearest_first(
    start: ValueId,
    steps: usize,
    mut next: impl FnMut(ValueId) -> Vec<ValueId>,
) -> impl Iterator<Item = ValueId> {
    let (mut seen, mut queue) = (Seen::default(), VecDeque::from([(start, 0)]));
    seen.insert(start);
    std::iter::from_fn(move || {
        let (value, step) = queue.pop_front()?;
        if step < steps {
            let new = next(value).into_iter().filter(|v| seen.insert(*v)).map(|v| (v, step + 1));
            queue.extend(new);
        }
        Some(value)
    })
}

/// What the node that makes a value reads; nothing for an input or a constant.
pub(crate) fn inputs_of(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let node = graph.producer(value).map(|(id, _)| graph.node(id));
    node.map_or_else(Vec::new, |node| node.inputs.iter().flatten().copied().collect())
}

/// What the nodes that read a value make.
pub(crate) fn outputs_after(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let outputs = graph.value(value).uses.iter().map(|user| match user {
        Use::Node { node, .. } => graph.node(*node).outputs.as_slice(),
        Use::GraphOutput(_) => &[],
    });
    outputs.flatten().copied().collect()
}

/// Values of one graph, a flag for each of its ids: for sets that hold much of the graph.
#[derive(Debug, Clone, Default)]
pub(crate) struct ValueSet(Vec<bool>);

impl ValueSet {
    pub(crate) fn contains(&self, value: ValueId) -> bool {
        self.0.get(value.index() as usize).copied().unwrap_or(false)
    }

    fn insert(&mut self, value: ValueId) {
        let index = value.index() as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, false);
        }
        self.0[index] = true;
    }
}

impl<'v> Extend<&'v ValueId> for ValueSet {
    fn extend<I: IntoIterator<Item = &'v ValueId>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.insert(*value));
    }
}

impl FromIterator<ValueId> for ValueSet {
    fn from_iter<I: IntoIterator<Item = ValueId>>(values: I) -> Self {
        let mut set = Self::default();
        values.into_iter().for_each(|value| set.insert(value));
        set
    }
}

/// Values that depend on what the graph is given: its inputs, and all that is computed from them.
pub(crate) fn computed(graph: &Graph) -> ValueSet {
    computed_from(graph, graph.inputs())
}

/// These, and all that is computed from them.
pub(crate) fn computed_from(graph: &Graph, values: &[ValueId]) -> ValueSet {
    let mut found: ValueSet = values.iter().copied().collect();
    for node in graph.order().into_iter().map(|id| graph.node(id)) {
        if node.inputs.iter().flatten().any(|v| found.contains(*v)) {
            found.extend(&node.outputs);
        }
    }
    found
}

/// Whether a value is made of constants alone.
pub(crate) fn is_made_of_constants(graph: &Graph, value: ValueId) -> bool {
    depth_first(value, |v| inputs_of(graph, v)).all(|v| !matches!(graph.value(v).def, Def::Input))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// Lines that add a value to itself so many times over: `%{from}`, `%{name}1` and so on.
    pub(crate) fn doubled(from: &str, name: &str, times: usize) -> String {
        let before = |n: usize| if n == 1 { from.to_owned() } else { format!("{name}{}", n - 1) };
        let lines = (1..=times).map(|n| format!("  %{name}{n} = Add(%{0}, %{0})\n", before(n)));
        lines.collect()
    }

    #[test]
    fn a_value_is_visited_once_however_many_ways_lead_to_it() {
        let text =
            format!("graph \"g\" {{\n  input %x: f32[2]\n{}  output \"y\" %x60\n}}", doubled("x", "x", 60));
        let graph = parse(&text).expect("it parses");
        let (x, y) = (graph.input("x").expect("x"), graph.output("y").expect("y"));
        assert_eq!(depth_first(y, |v| inputs_of(&graph, v)).count(), 61);
        assert_eq!(nearest_first(y, 60, |v| inputs_of(&graph, v)).last(), Some(x));
        assert_eq!(nearest_first(y, 59, |v| inputs_of(&graph, v)).count(), 60);
        assert_eq!(depth_first(x, |v| outputs_after(&graph, v)).last(), Some(y));
        assert_eq!(depth_first_from([y, x], |v| inputs_of(&graph, v)).count(), 61);
        let given = computed(&graph);
        assert!(depth_first(y, |v| inputs_of(&graph, v)).all(|v| given.contains(v)));
    }

    #[test]
    fn the_first_input_comes_first_and_the_nearest_where_it_is_asked_for() {
        let graph = parse(
            r#"graph "g" {
  input %x: f32[2]
  %a = Neg(%x)
  %b = Exp(%a)
  %c = Add(%b, %a)
  output "y" %c
}"#,
        )
        .expect("it parses");
        let y = graph.output("y").expect("y");
        let names = |values: Vec<ValueId>| -> Vec<String> {
            values.into_iter().map(|v| graph.value(v).name.clone()).collect()
        };
        assert_eq!(names(depth_first(y, |v| inputs_of(&graph, v)).collect()), ["c", "b", "a", "x"]);
        assert_eq!(names(nearest_first(y, 1, |v| inputs_of(&graph, v)).collect()), ["c", "b", "a"]);
    }
}
