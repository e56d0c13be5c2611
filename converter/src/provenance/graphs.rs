//! How two graphs differ: operators by their number, nodes by their names, and the text where little of it differs.

use dijiang_passes::ir::graph::{Graph, Node};
use dijiang_passes::ir::text;
use serde::Serialize;
use similar::{ChangeTag, TextDiff};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What differs between two graphs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GraphDifference {
    pub file: String,
    /// Operators there are not as many of, with their numbers in A and in B.
    pub operators: BTreeMap<String, [usize; 2]>,
    /// Nodes that only A has, as `name (operator)`.
    pub only_a: Vec<String>,
    pub only_b: Vec<String>,
    /// Nodes of one name with other operators or attributes.
    pub changed: Vec<String>,
    /// Lines of the textual form, with `-` for A and `+` for B; none where more than some differ.
    pub text: Vec<String>,
}

impl GraphDifference {
    /// Whether the graphs are the same, such as where only places in the weight file differ.
    pub(super) fn is_none(&self) -> bool {
        let none = Self { file: self.file.clone(), ..Self::default() };
        *self == none
    }
}

/// Lines that are told of two texts, at most.
const MOST_LINES: usize = 40;
/// How long texts are compared.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn compare(file: &str, a: &Graph, b: &Graph) -> GraphDifference {
    let [count_a, count_b] = [a, b].map(counts);
    let operators: BTreeSet<&String> = count_a.keys().chain(count_b.keys()).collect();
    let number = |counts: &BTreeMap<String, usize>, name: &str| counts.get(name).copied().unwrap_or(0);
    let both =
        operators.into_iter().map(|name| (name.clone(), [number(&count_a, name), number(&count_b, name)]));
    let [nodes_a, nodes_b] = [a, b].map(named);
    let only = |these: &BTreeMap<String, String>, others: &BTreeMap<String, String>| {
        let only = these.iter().filter(|(name, _)| !others.contains_key(*name));
        only.map(|(name, told)| format!("{name} ({})", operator(told))).collect::<Vec<_>>()
    };
    let changed = nodes_a.iter().filter_map(|(name, told)| {
        let other = nodes_b.get(name).filter(|other| *other != told)?;
        Some(format!("{name}: {told} -> {other}"))
    });
    GraphDifference {
        file: file.to_owned(),
        operators: both.filter(|(_, [a, b])| a != b).collect(),
        only_a: only(&nodes_a, &nodes_b),
        only_b: only(&nodes_b, &nodes_a),
        changed: changed.collect(),
        text: lines(&text::print(a), &text::print(b)),
    }
}

fn counts(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, node) in graph.nodes() {
        *counts.entry(node.op.name().to_owned()).or_default() += 1;
    }
    counts
}

/// The operator of each node with its attributes, by the node's name.
fn named(graph: &Graph) -> BTreeMap<String, String> {
    let told = |node: &Node| {
        let attributes: Vec<String> =
            node.op.attrs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        match attributes.is_empty() {
            true => node.op.name().to_owned(),
            false => format!("{} {}", node.op.name(), attributes.join(" ")),
        }
    };
    graph.nodes().map(|(_, node)| (node.name.clone(), told(node))).collect()
}

fn operator(told: &str) -> &str {
    told.split(' ').next().unwrap_or(told)
}

fn lines(a: &str, b: &str) -> Vec<String> {
    let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(a, b);
    let changes = diff.iter_all_changes().filter(|change| change.tag() != ChangeTag::Equal);
    let told: Vec<String> = changes
        .take(MOST_LINES + 1)
        .map(|change| format!("{}{}", change.tag(), change.value().trim_end()))
        .collect();
    if told.len() > MOST_LINES { Vec::new() } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_lines_as_are_read_are_told_and_no_more() {
        let text =
            |count: usize| (0..count).map(|line| line.to_string()).collect::<Vec<_>>().join("\n") + "\n";
        let told = lines("", &text(MOST_LINES));
        assert_eq!((told.len(), told[0].as_str()), (MOST_LINES, "+0"));
        assert_eq!(lines("", &text(MOST_LINES + 1)), Vec::<String>::new());
        assert_eq!(lines(&text(3), &text(3)), Vec::<String>::new());
    }
}
