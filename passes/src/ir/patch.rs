//! Patches: the only way to change a graph.
//!
//! A patch is written against one state of a graph. New nodes and values get their final ids at
//! once and their types as they are added, so the code that writes a patch can read the shapes of
//! what it just wrote. The first mistake is kept and returned by [`Graph::apply`], which changes
//! everything or nothing and then drops what became unused.

use super::graph::{Def, Graph, Node, NodeId, Use, Value, ValueId};
use super::infer::{InferContext, Type, infer};
use super::op::Op;
use super::shape::{Dim, Shape};
use super::tensor::Tensor;
use dijiang_format::dtype::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Why a patch was refused. The graph is as it was.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    #[error("{rule}: the graph changed after the patch was begun")]
    Stale { rule: &'static str },
    #[error("{rule}: node `{node}` ({op}): {reason}")]
    Node { rule: &'static str, node: String, op: String, reason: String },
    #[error("{rule}: `{old}` is {old_type}, but its replacement `{new}` is {new_type}")]
    Replacement { rule: &'static str, old: String, old_type: String, new: String, new_type: String },
    #[error("{rule}: input `{input}` still has users and cannot be removed")]
    InputInUse { rule: &'static str, input: String },
    #[error("{rule}: input `{input}` is removed, but the same patch lets {user} read it")]
    RemovedInputRead { rule: &'static str, input: String, user: String },
    #[error("{rule}: the name `{name}` is taken")]
    NameTaken { rule: &'static str, name: String },
    #[error("{rule}: {reason}")]
    Rule { rule: &'static str, reason: String },
    #[error("{rule}: as many patches as were asked for are applied")]
    Stopped { rule: &'static str },
}

/// What applying a patch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    pub added: usize,
    /// Nodes that became unused and were dropped.
    pub removed: usize,
}

/// A patch that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub rule: &'static str,
    /// The nodes, or inputs, that were replaced or taken away.
    pub places: Vec<String>,
}

/// The patches of a graph, and how many there may be. They come in the same order in every run, so that a
/// wrong one can be found by halving.
#[derive(Debug, Clone, Default)]
pub(super) struct Steps {
    limit: Option<usize>,
    applied: usize,
    last: Option<Step>,
    stopped: bool,
}

impl Steps {
    fn take(&mut self, step: Step) -> Result<(), PatchError> {
        if self.limit.is_some_and(|limit| self.applied >= limit) {
            self.stopped = true;
            return Err(PatchError::Stopped { rule: step.rule });
        }
        self.applied += 1;
        self.last = Some(step);
        Ok(())
    }
}

/// A change to one graph, written down before it is made.
#[derive(Debug)]
pub struct Patch<'g> {
    base: &'g Graph,
    rule: &'static str,
    scope: Scope<'g>,
    change: Change,
    counts: BTreeMap<String, u32>,
    error: Option<PatchError>,
}

/// What names of new nodes begin with.
#[derive(Debug)]
enum Scope<'g> {
    Given(String),
    /// The name of a node, without what an earlier patch added to it.
    Of(&'g Node),
}

impl Scope<'_> {
    fn name(&self) -> &str {
        let node = match self {
            Self::Given(name) => return name,
            Self::Of(node) => *node,
        };
        if node.origin == "import" {
            return &node.name;
        }
        let stem = node.name.rsplit_once('/').filter(|(_, last)| last.starts_with(node.op.name()));
        stem.map_or(node.name.as_str(), |(stem, _)| stem)
    }
}

/// A finished patch, free of the graph it was written against.
#[derive(Debug, Default)]
pub struct Change {
    rule: &'static str,
    base: (u32, u32),
    next: (u32, u32),
    nodes: BTreeMap<NodeId, Node>,
    values: BTreeMap<ValueId, Value>,
    new_inputs: Vec<ValueId>,
    dropped_inputs: Vec<ValueId>,
    new_outputs: Vec<(String, ValueId)>,
    dropped_outputs: Vec<String>,
    replaced: Vec<(ValueId, ValueId)>,
    input_types: Vec<(ValueId, Type)>,
    error: Option<PatchError>,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.values.is_empty()
            && self.replaced.is_empty()
            && self.dropped_inputs.is_empty()
            && self.new_outputs.is_empty()
            && self.dropped_outputs.is_empty()
            && self.input_types.is_empty()
    }
}

impl<'g> Patch<'g> {
    /// `rule` names what writes the patch, in errors and as the origin of new nodes.
    pub fn new(base: &'g Graph, rule: &'static str) -> Self {
        let next = (base.next_node, base.next_value);
        let change = Change { rule, base: next, next, ..Change::default() };
        Self { base, rule, scope: Scope::Given(String::new()), change, counts: BTreeMap::new(), error: None }
    }

    pub fn rule(&self) -> &'static str {
        self.rule
    }

    /// Names of nodes added from now on begin with `scope`.
    pub fn set_scope(&mut self, scope: &str) {
        self.scope = Scope::Given(scope.to_owned());
    }

    /// Names of nodes that `write` adds have `part` after their scope.
    pub fn within<T>(&mut self, part: &str, write: impl FnOnce(&mut Self) -> T) -> T {
        let inner = format!("{}/{part}", self.scope.name());
        let outer = std::mem::replace(&mut self.scope, Scope::Given(inner));
        let written = write(self);
        self.scope = outer;
        written
    }

    /// Names of nodes added from now on are made of the name of one that they stand for.
    pub fn name_after(&mut self, node: &'g Node) {
        self.scope = Scope::Of(node);
    }

    pub fn graph(&self) -> &'g Graph {
        self.base
    }

    pub fn value(&self, id: ValueId) -> &Value {
        self.change.values.get(&id).unwrap_or_else(|| self.base.value(id))
    }

    /// The node that makes a value, of the graph or of the patch itself.
    pub fn producer(&self, id: ValueId) -> Option<&Node> {
        let Def::Output { node, .. } = self.value(id).def else { return None };
        self.change.nodes.get(&node).or_else(|| self.base.get_node(node))
    }

    pub fn ty(&self, id: ValueId) -> &Type {
        &self.value(id).ty
    }

    /// The element type of a value; records an error where it is not known.
    pub fn dtype(&mut self, id: ValueId) -> DType {
        if let Some(dtype) = self.ty(id).dtype {
            return dtype;
        }
        self.fail(format!("the element type of `{}` is not known", self.value(id).name));
        DType::F32
    }

    /// The rank of a value; records an error where it is not known.
    pub fn rank(&mut self, id: ValueId) -> usize {
        if let Some(rank) = self.ty(id).rank() {
            return rank;
        }
        self.fail(format!("the rank of `{}` is not known", self.value(id).name));
        0
    }

    /// A dim of a value; `Unknown` where it, or the rank, is not known.
    pub fn dim(&self, id: ValueId, axis: usize) -> Dim {
        self.ty(id).shape.as_ref().and_then(|s| s.get(axis)).cloned().unwrap_or(Dim::Unknown)
    }

    /// A dim that must be a number; records an error where it is not.
    pub fn known_dim(&mut self, id: ValueId, axis: usize) -> u64 {
        if let Dim::Known(n) = self.dim(id, axis) {
            return n;
        }
        self.fail(format!("dim {axis} of `{}` must be known, it is {}", self.value(id).name, self.ty(id)));
        1
    }

    /// Records a mistake; the first one is what [`Graph::apply`] returns.
    pub fn fail(&mut self, reason: String) {
        let rule = self.rule;
        self.error.get_or_insert(PatchError::Rule { rule, reason });
    }

    fn new_value(&mut self, name: String, def: Def, ty: Type) -> ValueId {
        let id = ValueId::from_index(self.change.next.1);
        self.change.next.1 += 1;
        self.change.values.insert(id, Value { name, def, ty, uses: Vec::new(), is_weight: false });
        id
    }

    /// Adds a graph input.
    pub fn input(&mut self, name: &str, dtype: DType, shape: impl Into<Shape>) -> ValueId {
        let id = self.new_value(name.to_owned(), Def::Input, Type::new(dtype, shape));
        self.change.new_inputs.push(id);
        id
    }

    /// Adds a weight of the model, under the name it has in the weight file.
    pub fn weight(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let id = self.named_constant(name, tensor);
        if let Some(value) = self.change.values.get_mut(&id) {
            value.is_weight = true;
        }
        id
    }

    /// Adds a constant of the computation, such as an axis or a shape.
    pub fn constant(&mut self, hint: &str, tensor: Tensor) -> ValueId {
        let name = self.fresh_name(hint);
        self.named_constant(&name, tensor)
    }

    /// Adds a constant of the computation under a given name, as an importer does.
    pub fn named_constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let ty = Type::of_const(&tensor);
        self.new_value(name.to_owned(), Def::Const(tensor), ty)
    }

    fn fresh_name(&mut self, hint: &str) -> String {
        let scope = self.scope.name();
        let stem = if scope.is_empty() { hint.to_owned() } else { format!("{scope}/{hint}") };
        let n = self.counts.entry(stem.clone()).or_default();
        loop {
            *n += 1;
            let name = if *n == 1 { stem.clone() } else { format!("{stem}_{}", *n - 1) };
            if !self.base.names.contains(&name) && !self.base.names.contains(&format!("{name}:0")) {
                return name;
            }
        }
    }

    /// Adds a node with one output.
    pub fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.node_outputs(op, &inputs, 1)[0]
    }

    /// Adds a node; `None` leaves an optional input out.
    pub fn node_outputs(&mut self, op: Op, inputs: &[Option<ValueId>], outputs: usize) -> Vec<ValueId> {
        let name = self.fresh_name(op.name());
        let names = (0..outputs).map(|slot| match slot {
            0 => format!("{name}:0"),
            _ => format!("{name}:{slot}"),
        });
        let names = names.collect();
        self.named_node(&name, op, inputs, names)
    }

    /// Adds a node under given names, as an importer does.
    pub fn named_node(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Option<ValueId>],
        outputs: Vec<String>,
    ) -> Vec<ValueId> {
        let types = self.infer_types(name, &op, inputs, outputs.len());
        let id = NodeId::from_index(self.change.next.0);
        self.change.next.0 += 1;
        let values: Vec<ValueId> = outputs
            .into_iter()
            .zip(types)
            .enumerate()
            .map(|(slot, (name, ty))| self.new_value(name, Def::Output { node: id, slot: slot as u32 }, ty))
            .collect();
        let node = Node {
            op,
            inputs: inputs.to_vec(),
            outputs: values.clone(),
            name: name.to_owned(),
            origin: self.rule,
        };
        self.change.nodes.insert(id, node);
        values
    }

    fn infer_types(&mut self, name: &str, op: &Op, inputs: &[Option<ValueId>], outputs: usize) -> Vec<Type> {
        let types: Vec<Option<&Type>> = inputs.iter().map(|v| v.map(|v| self.ty(v))).collect();
        let consts: Vec<Option<&Tensor>> =
            inputs.iter().map(|v| v.and_then(|v| self.value(v).as_const())).collect();
        let ctx = InferContext { op, inputs: &types, consts: &consts, outputs };
        match infer(&ctx) {
            Ok(types) => types,
            Err(reason) => {
                let given: Vec<String> =
                    types.iter().map(|t| t.map_or_else(|| "-".to_owned(), Type::to_string)).collect();
                let reason = format!("{reason} (inputs {})", given.join(", "));
                let (rule, node, op) = (self.rule, name.to_owned(), op.qualified_name());
                self.error.get_or_insert(PatchError::Node { rule, node, op, reason });
                vec![Type::default(); outputs]
            }
        }
    }

    /// Adds a graph output.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.change.new_outputs.push((name.to_owned(), value));
    }

    /// Every user of `old`, graph outputs included, takes `new` instead, except nodes of this patch.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        let (o, n) = (self.value(old), self.value(new));
        if !o.ty.agrees(&n.ty) {
            let error = PatchError::Replacement {
                rule: self.rule,
                old: o.name.clone(),
                old_type: o.ty.to_string(),
                new: n.name.clone(),
                new_type: n.ty.to_string(),
            };
            self.error.get_or_insert(error);
        }
        self.change.replaced.push((old, new));
    }

    /// Takes a graph input away; nothing may use it once the patch is applied.
    pub fn drop_input(&mut self, input: ValueId) {
        self.change.dropped_inputs.push(input);
    }

    /// Takes a graph output away.
    pub fn drop_output(&mut self, name: &str) {
        self.change.dropped_outputs.push(name.to_owned());
    }

    /// States what is known of a graph input.
    pub fn set_input_type(&mut self, input: ValueId, ty: Type) {
        self.change.input_types.push((input, ty));
    }

    pub fn finish(mut self) -> Change {
        self.change.error = self.error;
        self.change
    }
}

impl Graph {
    /// Makes a change, then drops every node and constant that nothing uses. On an error the graph
    /// is as it was.
    pub fn apply(&mut self, change: Change) -> Result<Applied, PatchError> {
        self.check(&change)?;
        if change.is_empty() {
            return Ok(Applied::default());
        }
        self.steps.take(self.step(&change))?;
        self.ordered.take();
        let added = change.nodes.len();
        let suspects = self.take(change);
        let removed = self.collect_garbage(suspects);
        Ok(Applied { added, removed })
    }

    /// Counts patches from here on, and refuses those after the first `patches`.
    pub fn stop_after(&mut self, patches: usize) {
        self.steps = Steps { limit: Some(patches), ..Steps::default() };
    }

    /// Patches that were applied, since [`stop_after`](Self::stop_after) where it was called.
    pub fn patches(&self) -> usize {
        self.steps.applied
    }

    pub fn last_patch(&self) -> Option<&Step> {
        self.steps.last.as_ref()
    }

    /// Whether a patch was refused because enough are applied.
    pub fn is_stopped(&self) -> bool {
        self.steps.stopped
    }

    fn step(&self, change: &Change) -> Step {
        let (mut places, mut seen) = (Vec::new(), BTreeSet::new());
        let replaced = change.replaced.iter().map(|(old, _)| *old);
        let typed = change.input_types.iter().map(|(input, _)| *input);
        for value in replaced.chain(change.dropped_inputs.iter().copied()).chain(typed) {
            // What the patch itself wrote, and replaced again, is no place in the graph.
            let Some(found) = self.get_value(value) else { continue };
            let node = self.producer(value).map(|(id, _)| self.node(id).name.clone());
            let place = node.filter(|name| !name.is_empty()).unwrap_or_else(|| found.name.clone());
            if seen.insert(place.clone()) {
                places.push(place);
            }
        }
        Step { rule: change.rule, places }
    }

    /// Infers every type anew, from the inputs on: a replaced value may say more, or less, than the
    /// one that stood there when its users were typed.
    pub fn refresh_types(&mut self) -> Result<(), PatchError> {
        for id in self.order() {
            let node = self.node(id);
            let types: Vec<Option<&Type>> =
                node.inputs.iter().map(|v| v.map(|v| &self.value(v).ty)).collect();
            let consts: Vec<Option<&Tensor>> =
                node.inputs.iter().map(|v| v.and_then(|v| self.as_const(v))).collect();
            let ctx =
                InferContext { op: &node.op, inputs: &types, consts: &consts, outputs: node.outputs.len() };
            let known = node.op.spec().is_some();
            let inferred = infer(&ctx).map_err(|reason| PatchError::Node {
                rule: "refresh_types",
                node: node.name.clone(),
                op: node.op.qualified_name(),
                reason,
            })?;
            for (value, ty) in node.outputs.clone().into_iter().zip(inferred) {
                if let Some(value) = self.values.get_mut(&value).filter(|_| known) {
                    value.ty = ty;
                }
            }
        }
        Ok(())
    }

    fn check(&self, change: &Change) -> Result<(), PatchError> {
        let rule = change.rule;
        if let Some(error) = &change.error {
            return Err(error.clone());
        }
        if change.base != (self.next_node, self.next_value) {
            return Err(PatchError::Stale { rule });
        }
        self.check_dropped_inputs(change)?;
        let mut fresh = BTreeSet::new();
        for name in change.values.values().map(|v| &v.name) {
            if self.names.contains(name) || !fresh.insert(name) {
                return Err(PatchError::NameTaken { rule, name: name.clone() });
            }
        }
        Ok(())
    }

    /// Nothing may read an input that is taken away: neither what read it before, unless it is replaced, nor what the
    /// patch itself writes.
    fn check_dropped_inputs(&self, change: &Change) -> Result<(), PatchError> {
        if change.dropped_inputs.is_empty() {
            return Ok(());
        }
        let rule = change.rule;
        let replaced: BTreeSet<ValueId> = change.replaced.iter().map(|(old, _)| *old).collect();
        for input in change.dropped_inputs.iter().filter(|input| !replaced.contains(input)) {
            if !self.value(*input).uses.is_empty() {
                return Err(PatchError::InputInUse { rule, input: self.value(*input).name.clone() });
            }
        }
        let dropped: BTreeSet<ValueId> = change.dropped_inputs.iter().copied().collect();
        let by_nodes = change.nodes.values().flat_map(|node| {
            let user = move || format!("new node `{}`", node.name);
            node.inputs.iter().flatten().map(move |input| (*input, user()))
        });
        let by_outputs = change.new_outputs.iter().map(|(name, v)| (*v, format!("new output `{name}`")));
        let by_users = change.replaced.iter().map(|(old, new)| {
            let old = self.get_value(*old).or_else(|| change.values.get(old));
            (*new, format!("the users of `{}`", old.map_or("?", |value| value.name.as_str())))
        });
        match by_nodes.chain(by_outputs).chain(by_users).find(|(input, _)| dropped.contains(input)) {
            Some((input, user)) => {
                Err(PatchError::RemovedInputRead { rule, input: self.value(input).name.clone(), user })
            }
            None => Ok(()),
        }
    }

    /// Puts the change in and returns the values that may have become unused.
    fn take(&mut self, change: Change) -> Vec<ValueId> {
        (self.next_node, self.next_value) = change.next;
        let mut suspects: Vec<ValueId> = change.values.keys().copied().collect();
        self.names.extend(change.values.values().map(|v| v.name.clone()));
        self.values.extend(change.values);
        for (old, new) in change.replaced {
            self.move_uses(old, new);
            suspects.push(old);
        }
        for (id, node) in change.nodes {
            for (slot, value) in node.inputs.iter().enumerate() {
                self.add_use(*value, Use::Node { node: id, slot: slot as u32 });
            }
            self.nodes.insert(id, node);
        }
        suspects.extend(self.change_outputs(&change.dropped_outputs, change.new_outputs));
        self.inputs.extend(change.new_inputs);
        if !change.dropped_inputs.is_empty() {
            let dropped: BTreeSet<ValueId> = change.dropped_inputs.iter().copied().collect();
            self.inputs.retain(|v| !dropped.contains(v));
        }
        for input in change.dropped_inputs {
            self.remove_value(input);
        }
        for (input, ty) in change.input_types {
            if let Some(value) = self.values.get_mut(&input) {
                value.ty = ty;
            }
        }
        suspects
    }

    fn add_use(&mut self, value: Option<ValueId>, user: Use) {
        if let Some(value) = value.and_then(|v| self.values.get_mut(&v)) {
            value.uses.push(user);
        }
    }

    fn remove_value(&mut self, value: ValueId) {
        if let Some(value) = self.values.remove(&value) {
            self.names.remove(&value.name);
        }
    }

    fn move_uses(&mut self, old: ValueId, new: ValueId) {
        let Some(value) = self.values.get_mut(&old) else { return };
        let uses = std::mem::take(&mut value.uses);
        for user in &uses {
            match user {
                Use::Node { node, slot } => {
                    if let Some(node) = self.nodes.get_mut(node) {
                        node.inputs[*slot as usize] = Some(new);
                    }
                }
                Use::GraphOutput(slot) => self.outputs[*slot as usize].1 = new,
            }
        }
        if let Some(value) = self.values.get_mut(&new) {
            value.uses.extend(uses);
        }
    }

    /// Takes outputs away and adds others after the rest, whose slots change from the first that goes on. Returns the
    /// values that are outputs no more.
    fn change_outputs(&mut self, dropped: &[String], new: Vec<(String, ValueId)>) -> Vec<ValueId> {
        let dropped: BTreeSet<&String> = dropped.iter().collect();
        let is_dropped = |(name, _): &(String, ValueId)| dropped.contains(name);
        let first = match dropped.is_empty() {
            true => self.outputs.len(),
            false => self.outputs.iter().position(is_dropped).unwrap_or(self.outputs.len()),
        };
        let after = self.outputs.split_off(first);
        let moved: BTreeSet<ValueId> = after.iter().map(|(_, value)| *value).collect();
        for id in &moved {
            if let Some(value) = self.values.get_mut(id) {
                value.uses.retain(|u| !matches!(u, Use::GraphOutput(slot) if *slot as usize >= first));
            }
        }
        let (gone, stay): (Vec<_>, Vec<_>) = after.into_iter().partition(is_dropped);
        for (name, value) in stay.into_iter().chain(new) {
            let slot = self.outputs.len() as u32;
            self.add_use(Some(value), Use::GraphOutput(slot));
            self.outputs.push((name, value));
        }
        gone.into_iter().map(|(_, value)| value).collect()
    }

    /// Drops what became unused, beginning at `suspects`. Returns the number of nodes dropped.
    fn collect_garbage(&mut self, mut suspects: Vec<ValueId>) -> usize {
        let mut garbage = Garbage::default();
        while let Some(id) = suspects.pop() {
            let Some(value) = self.values.get(&id) else { continue };
            if garbage.uses_left(self, id) > 0 {
                continue;
            }
            match value.def {
                Def::Input => {}
                Def::Const(_) => self.remove_value(id),
                Def::Output { node, .. } => {
                    let is_unused = |v: &ValueId| garbage.uses_left(self, *v) == 0;
                    if self.node(node).outputs.iter().all(is_unused) {
                        suspects.extend(self.remove_node(node, &mut garbage));
                    }
                }
            }
        }
        for id in garbage.fewer_uses.keys() {
            if let Some(value) = self.values.get_mut(id) {
                let is_gone =
                    |user: &Use| matches!(user, Use::Node { node, .. } if garbage.nodes.contains(node));
                value.uses.retain(|user| !is_gone(user));
            }
        }
        garbage.nodes.len()
    }

    /// Returns the values the node used.
    fn remove_node(&mut self, id: NodeId, garbage: &mut Garbage) -> Vec<ValueId> {
        let Some(node) = self.nodes.remove(&id) else { return Vec::new() };
        for value in node.outputs {
            self.remove_value(value);
        }
        garbage.nodes.insert(id);
        let used: Vec<ValueId> = node.inputs.into_iter().flatten().collect();
        used.iter().for_each(|value| *garbage.fewer_uses.entry(*value).or_default() += 1);
        used
    }
}

/// Nodes that are gone. Their uses are taken off the values at the end, as many nodes may have used one.
#[derive(Default)]
struct Garbage {
    nodes: BTreeSet<NodeId>,
    /// How many of a value's uses are by them.
    fewer_uses: BTreeMap<ValueId, usize>,
}

impl Garbage {
    fn uses_left(&self, graph: &Graph, value: ValueId) -> usize {
        let gone = self.fewer_uses.get(&value).copied().unwrap_or_default();
        graph.value(value).uses.len().saturating_sub(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::ir::verify::verify;

    /// A graph whose input `x` gives way to the new input `z`, in a patch that `write` goes on with.
    fn without_x(write: impl FnOnce(&mut Patch<'_>, ValueId)) -> Result<Graph, PatchError> {
        let text = "graph \"g\" {\n  input %x: f32[2]\n  %y = Neg(%x) \"neg\"\n  output \"y\" %y\n}";
        let mut graph = parse(text).expect("it parses");
        let before = print(&graph);
        let x = graph.input("x").expect("x");
        let change = {
            let mut patch = Patch::new(&graph, "test");
            let z = patch.input("z", DType::F32, vec![Dim::Known(2)]);
            patch.replace(x, z);
            patch.drop_input(x);
            write(&mut patch, x);
            patch.finish()
        };
        let applied = graph.apply(change);
        if applied.is_err() {
            assert_eq!(print(&graph), before);
        }
        applied.map(|_| graph)
    }

    #[test]
    fn what_reads_a_removed_input_takes_its_replacement() {
        let graph = without_x(|_, _| ()).expect("it applies");
        assert_eq!(verify(&graph), []);
        assert_eq!(graph.inputs().len(), 1);
    }

    #[test]
    fn a_patch_cannot_read_an_input_that_it_removes() {
        let message =
            |write: fn(&mut Patch<'_>, ValueId)| without_x(write).expect_err("it is refused").to_string();
        let node = message(|patch, x| {
            let y = patch.neg(x);
            patch.output("z", y);
        });
        assert_eq!(node, "test: input `x` is removed, but the same patch lets new node `Neg` read it");
        let output = message(|patch, x| patch.output("z", x));
        assert_eq!(output, "test: input `x` is removed, but the same patch lets new output `z` read it");
        let user = message(|patch, x| {
            let y = patch.graph().output("y").expect("y");
            patch.replace(y, x);
        });
        assert_eq!(user, "test: input `x` is removed, but the same patch lets the users of `y` read it");
    }
}
