//! Matches: two nodes with the same operator, attributes and inputs, and two small equal constants
//! Becomes: the first of them
//! Exact: yes

use super::GraphRule;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Attr;
use crate::ir::patch::{Applied, Patch, PatchError};
use std::collections::BTreeMap;

pub(super) struct CommonSubexpression;

/// Largest constant that is compared by its bytes.
const MAX_COMPARED: usize = 1 << 16;

/// Operators that give something else each time.
const NOT_PURE: [&str; 5] =
    ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Dropout"];

impl GraphRule for CommonSubexpression {
    fn name(&self) -> &'static str {
        "common_subexpression"
    }

    /// Follows chains in one sweep: inputs are compared after their own replacement.
    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mut patch = Patch::new(graph, self.name());
        let mut same: BTreeMap<ValueId, ValueId> = equal_constants(graph);
        let mut seen: BTreeMap<String, Vec<ValueId>> = BTreeMap::new();
        for id in graph.order() {
            let node = graph.node(id);
            let holds_tensor = node.op.attrs.values().any(|a| matches!(a, Attr::Tensor(_)));
            if NOT_PURE.contains(&node.op.name()) || node.op.spec().is_none() || holds_tensor {
                continue;
            }
            let inputs: Vec<Option<ValueId>> =
                node.inputs.iter().map(|v| v.map(|v| same.get(&v).copied().unwrap_or(v))).collect();
            let key =
                format!("{:?}{:?}{inputs:?}{}", node.op.qualified_name(), node.op.attrs, node.outputs.len());
            match seen.get(&key) {
                Some(first) => same.extend(node.outputs.iter().copied().zip(first.iter().copied())),
                None => {
                    seen.insert(key, node.outputs.clone());
                }
            }
        }
        if same.is_empty() {
            return Ok(None);
        }
        for (old, new) in same {
            patch.replace(old, new);
        }
        let change = patch.finish();
        graph.apply(change).map(Some)
    }
}

fn equal_constants(graph: &Graph) -> BTreeMap<ValueId, ValueId> {
    let mut first: BTreeMap<(String, Vec<u8>), ValueId> = BTreeMap::new();
    let mut same = BTreeMap::new();
    for (id, _, tensor) in graph.consts() {
        if graph.value(id).is_weight || tensor.byte_len() > MAX_COMPARED {
            continue;
        }
        let key = (format!("{tensor:?}"), tensor.bytes().into_owned());
        match first.get(&key) {
            Some(other) => {
                same.insert(id, *other);
            }
            None => {
                first.insert(key, id);
            }
        }
    }
    same
}
