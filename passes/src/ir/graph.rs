//! The graph: nodes, values, and who uses what. [`super::patch::Patch`] is the only way to change one.

pub use super::ids::{NodeId, ValueId};
use super::infer::Type;
use super::op::Op;
use super::patch::Steps;
use super::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Def {
    Input,
    Const(Tensor),
    Output { node: NodeId, slot: u32 },
}

/// Where a value goes. Graph outputs are uses like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    Node { node: NodeId, slot: u32 },
    GraphOutput(u32),
}

/// An edge of the graph.
#[derive(Clone, Debug)]
pub struct Value {
    /// Unique in its graph. The name of a weight is its name in the checkpoint.
    pub name: String,
    pub def: Def,
    pub ty: Type,
    pub uses: Vec<Use>,
    /// A constant that belongs to the model, not to the computation: it is kept under its own name
    /// in the weight file, and training may change it.
    pub is_weight: bool,
}

impl Value {
    pub fn as_const(&self) -> Option<&Tensor> {
        match &self.def {
            Def::Const(tensor) => Some(tensor),
            Def::Input | Def::Output { .. } => None,
        }
    }
}

/// An operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    /// `None` where an optional input is left out.
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<ValueId>,
    pub name: String,
    /// What made the node: `import`, a model family, or the rule that wrote it.
    pub origin: &'static str,
}

impl Node {
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }
}

/// A graph in single-assignment form.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) values: BTreeMap<ValueId, Value>,
    pub(super) inputs: Vec<ValueId>,
    /// The values the graph returns, under the names it returns them.
    pub(super) outputs: Vec<(String, ValueId)>,
    /// The names of all values.
    pub(super) names: BTreeSet<String>,
    /// [`Graph::order`], until the next patch.
    pub(super) ordered: OnceLock<Vec<NodeId>>,
    pub(super) next_node: u32,
    pub(super) next_value: u32,
    pub(super) steps: Steps,
}

impl Graph {
    /// A graph with nothing in it; build it with a [`super::patch::Patch`].
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Panics on an id of another graph, which is a bug of the caller.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// Panics on an id of another graph, which is a bug of the caller.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[&id]
    }

    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn get_value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(&id)
    }

    /// All nodes by id, in no topological order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().map(|(id, value)| (*id, value))
    }

    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    pub fn input(&self, name: &str) -> Option<ValueId> {
        self.inputs.iter().copied().find(|v| self.value(*v).name == name)
    }

    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.values().find(|(_, v)| v.name == name).map(|(id, _)| id)
    }

    /// The constants, by id.
    pub fn consts(&self) -> impl Iterator<Item = (ValueId, &str, &Tensor)> {
        self.values().filter_map(|(id, v)| v.as_const().map(|t| (id, v.name.as_str(), t)))
    }

    /// The node that makes a value, with the output slot.
    pub fn producer(&self, value: ValueId) -> Option<(NodeId, u32)> {
        match self.value(value).def {
            Def::Output { node, slot } => Some((node, slot)),
            Def::Input | Def::Const(_) => None,
        }
    }

    /// The node that makes a value, if it is the operator `name` of `ai.onnx`.
    pub fn made_by(&self, value: ValueId, name: &str) -> Option<&Node> {
        let (node, _) = self.producer(value)?;
        Some(self.node(node)).filter(|n| n.op.is(name))
    }

    pub fn as_const(&self, value: ValueId) -> Option<&Tensor> {
        self.value(value).as_const()
    }

    /// The number held by a constant of one element.
    pub fn as_scalar(&self, value: ValueId) -> Option<f64> {
        self.as_const(value)?.single()
    }

    /// All nodes, producers before users, ties by id. Nodes on a cycle are left out; the verifier
    /// reports them.
    pub fn order(&self) -> Vec<NodeId> {
        self.ordered.get_or_init(|| self.compute_order()).clone()
    }

    fn compute_order(&self) -> Vec<NodeId> {
        let mut missing: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut ready = BTreeSet::new();
        for (id, node) in &self.nodes {
            let made = node.inputs.iter().flatten().filter(|v| self.producer(**v).is_some());
            match made.count() {
                0 => {
                    ready.insert(*id);
                }
                n => {
                    missing.insert(*id, n);
                }
            }
        }
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(id) = ready.pop_first() {
            order.push(id);
            for value in &self.node(id).outputs {
                for user in &self.value(*value).uses {
                    let Use::Node { node, .. } = user else { continue };
                    let Some(n) = missing.get_mut(node) else { continue };
                    *n -= 1;
                    if *n == 0 {
                        ready.insert(*node);
                    }
                }
            }
        }
        order
    }
}
