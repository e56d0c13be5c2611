//! The verifier: every way in which a graph is not well-formed, each with its place.

use super::graph::{Def, Graph, Node, NodeId, Use, ValueId};
use super::infer::{InferContext, Type, infer};
use super::tensor::Tensor;
use std::collections::BTreeSet;
use std::fmt;

/// One thing that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `node "h.0/Add" (Add)`, `value "x"`, or `graph "model"`
    pub place: String,
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// All violations, in the order of nodes and values. Empty for a well-formed graph.
pub fn verify(graph: &Graph) -> Vec<Violation> {
    let mut check = Check { graph, found: Vec::new() };
    check.uses();
    for (id, node) in graph.nodes() {
        check.node(id, node);
    }
    check.cycles();
    check.outputs();
    check.found
}

fn place_of(node: &Node) -> String {
    format!("node {:?} ({})", node.name, node.op.qualified_name())
}

struct Check<'g> {
    graph: &'g Graph,
    found: Vec<Violation>,
}

impl Check<'_> {
    fn report(&mut self, place: String, reason: String) {
        self.found.push(Violation { place, reason });
    }

    fn node(&mut self, id: NodeId, node: &Node) {
        for reason in node.op.violations(node.inputs.len(), node.outputs.len()) {
            self.report(place_of(node), reason);
        }
        for (slot, value) in node.inputs.iter().enumerate() {
            if value.is_some_and(|v| self.graph.get_value(v).is_none()) {
                self.report(place_of(node), format!("input {slot} does not exist"));
            }
        }
        for (slot, value) in node.outputs.iter().enumerate() {
            let def = self.graph.get_value(*value).map(|v| &v.def);
            let is_ours =
                matches!(def, Some(Def::Output { node, slot: s }) if *node == id && *s as usize == slot);
            if !is_ours {
                self.report(place_of(node), format!("output {slot} is not defined by this node"));
            }
        }
        self.types(node);
    }

    /// Types are inferred anew and must agree with what the values say.
    fn types(&mut self, node: &Node) {
        let value = |v: &Option<ValueId>| v.and_then(|v| self.graph.get_value(v));
        let types: Vec<Option<&Type>> = node.inputs.iter().map(|v| value(v).map(|v| &v.ty)).collect();
        let consts: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|v| value(v).and_then(|v| v.as_const())).collect();
        let ctx = InferContext { op: &node.op, inputs: &types, consts: &consts, outputs: node.outputs.len() };
        match infer(&ctx) {
            Err(reason) => self.report(place_of(node), reason),
            Ok(types) => {
                for (slot, (ty, id)) in types.iter().zip(&node.outputs).enumerate() {
                    let Some(value) = self.graph.get_value(*id) else { continue };
                    if !value.ty.agrees(ty) {
                        let reason = format!("output {slot} is declared {}, but it is {ty}", value.ty);
                        self.report(place_of(node), reason);
                    }
                }
            }
        }
    }

    fn uses(&mut self) {
        let mut used: Vec<(ValueId, Use)> = Vec::new();
        for (id, node) in self.graph.nodes() {
            for (slot, value) in node.inputs.iter().enumerate() {
                used.extend(value.map(|v| (v, Use::Node { node: id, slot: slot as u32 })));
            }
        }
        for (slot, (_, value)) in self.graph.outputs().iter().enumerate() {
            used.push((*value, Use::GraphOutput(slot as u32)));
        }
        let mut listed: Vec<(ValueId, Use)> =
            self.graph.values().flat_map(|(id, v)| v.uses.iter().map(move |u| (id, *u))).collect();
        used.sort_unstable();
        listed.sort_unstable();
        if used == listed {
            return;
        }
        let [used, listed] = [used, listed].map(BTreeSet::from_iter);
        for (value, user) in used.symmetric_difference(&listed) {
            let name = self.graph.get_value(*value).map_or("?", |v| v.name.as_str());
            let reason = format!("its use list and {user:?} disagree");
            self.report(format!("value {name:?}"), reason);
        }
    }

    fn cycles(&mut self) {
        let ordered: BTreeSet<NodeId> = self.graph.order().into_iter().collect();
        for (id, node) in self.graph.nodes() {
            if !ordered.contains(&id) {
                self.report(place_of(node), "it lies on a cycle, or is computed from one".to_owned());
            }
        }
    }

    fn outputs(&mut self) {
        let mut seen = BTreeSet::new();
        for (name, value) in self.graph.outputs() {
            let place = format!("graph {:?}", self.graph.name);
            if self.graph.get_value(*value).is_none() {
                self.report(place.clone(), format!("output `{name}` does not exist"));
            }
            if !seen.insert(name) {
                self.report(place, format!("two outputs are called `{name}`"));
            }
        }
    }
}
