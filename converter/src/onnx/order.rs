//! The order of nodes. A graph's are to be sorted, but ONNX Runtime also takes those that are not, which converters to
//! half precision write.

use super::proto::NodeProto;
use std::collections::{BTreeMap, BTreeSet};

/// The places of all nodes, each behind those that compute what it reads, and otherwise as in the file. Nodes on a cycle and
/// those that read from one come last.
pub(super) fn sorted(nodes: &[NodeProto]) -> Vec<usize> {
    let outputs =
        nodes.iter().enumerate().flat_map(|(at, node)| node.output.iter().map(move |o| (o.as_str(), at)));
    let makers: BTreeMap<&str, usize> = outputs.filter(|(name, _)| !name.is_empty()).collect();
    let mut needs: Vec<BTreeSet<usize>> = nodes.iter().map(|node| needed(node, &makers)).collect();
    // A node that reads what it computes is an error where it stands.
    needs.iter_mut().enumerate().for_each(|(at, needs)| _ = needs.remove(&at));
    if needs.iter().enumerate().all(|(at, needs)| needs.last().is_none_or(|last| *last < at)) {
        return (0..nodes.len()).collect();
    }
    let mut readers = vec![Vec::new(); nodes.len()];
    for (at, needs) in needs.iter().enumerate() {
        needs.iter().for_each(|maker| readers[*maker].push(at));
    }
    let mut open: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|at| open[*at] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for reader in &readers[at] {
            open[*reader] -= 1;
            if open[*reader] == 0 {
                ready.insert(*reader);
            }
        }
    }
    order.extend((0..nodes.len()).filter(|at| open[*at] > 0));
    order
}

/// The nodes that compute what a node and its subgraphs read.
fn needed(node: &NodeProto, makers: &BTreeMap<&str, usize>) -> BTreeSet<usize> {
    let own = node.input.iter().filter_map(|name| makers.get(name.as_str()).copied());
    let graphs = node.attribute.iter().filter_map(|attribute| attribute.g.as_ref());
    let inner = graphs.flat_map(|graph| {
        let read = graph.output.iter().filter_map(|output| makers.get(output.name.as_str()).copied());
        graph.node.iter().flat_map(|node| needed(node, makers)).chain(read)
    });
    own.chain(inner).collect()
}

#[cfg(test)]
mod tests {
    use super::sorted;
    use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto};

    fn node(output: &str, inputs: &[&str]) -> NodeProto {
        let input = inputs.iter().map(|name| (*name).to_owned()).collect();
        NodeProto { output: vec![output.to_owned()], input, ..NodeProto::default() }
    }

    #[test]
    fn sorted_nodes_stay_as_they_are() {
        let nodes = [node("c", &["x"]), node("a", &["x"]), node("b", &["a", "c"])];
        assert_eq!(sorted(&nodes), [0, 1, 2]);
    }

    #[test]
    fn a_node_comes_behind_what_it_reads() {
        let nodes = [node("c", &["b"]), node("a", &["x"]), node("b", &["a"]), node("d", &["x"])];
        assert_eq!(sorted(&nodes), [1, 2, 0, 3]);
    }

    #[test]
    fn what_a_branch_reads_comes_before_its_node() {
        let branch = GraphProto { node: vec![node("inner", &["a"])], ..GraphProto::default() };
        let attribute = AttributeProto { g: Some(branch), ..AttributeProto::default() };
        let chooses = NodeProto { attribute: vec![attribute], ..node("y", &["x"]) };
        assert_eq!(sorted(&[chooses, node("a", &["x"])]), [1, 0]);
    }

    #[test]
    fn a_cycle_comes_last() {
        let nodes = [node("a", &["b"]), node("b", &["a"]), node("c", &["x"])];
        assert_eq!(sorted(&nodes), [2, 0, 1]);
    }
}
