//! A graph written anew, node by node, with some of its values replaced on the way.

use crate::ir::graph::{Def, Graph, Node, NodeId, ValueId};
use crate::ir::patch::{Patch, PatchError};
use std::collections::BTreeMap;

/// What becomes of the parts of a graph.
pub trait Rebuild {
    /// The new value for a graph input.
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        copy_input(p, graph, id)
    }

    /// The new value for a constant.
    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        copy_constant(p, graph, id)
    }

    /// The new outputs of a node, whose inputs are new already.
    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        copy_node(p, graph, node, inputs)
    }

    /// Whether the new graph returns an output of this name.
    fn keeps_output(&self, _name: &str) -> bool {
        true
    }
}

/// The node as it is, on new inputs.
pub fn copy_node(p: &mut Patch<'_>, graph: &Graph, node: &Node, inputs: &[Option<ValueId>]) -> Vec<ValueId> {
    let names = node.outputs.iter().map(|v| graph.value(*v).name.clone()).collect();
    p.named_node(&node.name, node.op.clone(), inputs, names)
}

/// An input as it is.
pub fn copy_input(p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
    let value = graph.value(id);
    match (value.ty.dtype, &value.ty.shape) {
        (Some(dtype), Some(shape)) => p.input(&value.name, dtype, shape.clone()),
        _ => {
            p.fail(format!("input `{}` has no type", value.name));
            id
        }
    }
}

/// A constant as it is.
pub fn copy_constant(p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
    let value = graph.value(id);
    let Def::Const(tensor) = &value.def else {
        p.fail(format!("`{}` is used before it is made", value.name));
        return id;
    };
    match value.is_weight {
        true => p.weight(&value.name, tensor.clone()),
        false => p.named_constant(&value.name, tensor.clone()),
    }
}

/// Writes `graph` anew by `how`; `rule` names what writes it. Constants come when the first node reads them.
pub fn rebuild(graph: &Graph, rule: &'static str, how: &mut dyn Rebuild) -> Result<Graph, PatchError> {
    rebuild_in_order(graph, &graph.order(), rule, how)
}

/// The same with the nodes in this order, producers before their users.
pub fn rebuild_in_order(
    graph: &Graph,
    order: &[NodeId],
    rule: &'static str,
    how: &mut dyn Rebuild,
) -> Result<Graph, PatchError> {
    let mut rebuilt = Graph::new(&graph.name);
    rebuilt.steps = graph.steps.clone();
    let change = {
        let mut patch = Patch::new(&rebuilt, rule);
        let mut new: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for input in graph.inputs() {
            new.insert(*input, how.input(&mut patch, graph, *input));
        }
        for node in order.iter().map(|id| graph.node(*id)) {
            for value in node.inputs.iter().flatten() {
                if !new.contains_key(value) {
                    new.insert(*value, how.constant(&mut patch, graph, *value));
                }
            }
            let inputs: Vec<Option<ValueId>> = node.inputs.iter().map(|v| v.map(|v| new[&v])).collect();
            let outputs = how.node(&mut patch, graph, node, &inputs);
            new.extend(node.outputs.iter().copied().zip(outputs));
        }
        for (name, value) in graph.outputs() {
            if !how.keeps_output(name) {
                continue;
            }
            let value = match new.get(value) {
                Some(value) => *value,
                None => how.constant(&mut patch, graph, *value),
            };
            patch.output(name, value);
        }
        patch.finish()
    };
    rebuilt.apply(change)?;
    Ok(rebuilt)
}
