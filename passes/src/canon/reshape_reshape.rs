//! Matches: `Reshape(Reshape(x, s), t)` where t copies no dim of s that x has not in the same place,
//! and a `Reshape` that changes nothing
//! Becomes: `Reshape(x, t)`, or `x` where the shapes are equal, whatever lay between
//! Exact: yes

use super::GraphRule;
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, Patch, PatchError};
use crate::ir::shape::Dim;

pub(super) struct ReshapeReshape;

impl GraphRule for ReshapeReshape {
    fn name(&self) -> &'static str {
        "reshape_reshape"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mut patch = Patch::new(graph, self.name());
        let mut found = false;
        for (_, node) in graph.nodes().filter(|(_, n)| n.op.is("Reshape")) {
            let new = match (changes_nothing(graph, node), through(graph, node)) {
                (Some(x), _) => x,
                (None, Some(x)) => {
                    let Some(target) = node.input(1) else { continue };
                    patch.node(node.op.clone(), &[x, target])
                }
                (None, None) => continue,
            };
            patch.replace(node.outputs[0], new);
            found = true;
        }
        let change = patch.finish();
        if !found {
            return Ok(None);
        }
        graph.apply(change).map(Some)
    }
}

fn shape(graph: &Graph, value: ValueId) -> Option<&Vec<Dim>> {
    graph.value(value).ty.shape.as_ref()
}

/// The input, where the shape going in is the shape coming out, dim by dim.
fn changes_nothing(graph: &Graph, node: &Node) -> Option<ValueId> {
    let x = node.input(0)?;
    let to = shape(graph, node.outputs[0])?;
    let before = graph.made_by(x, "Reshape").and_then(|n| n.input(0));
    let same = |v: &ValueId| shape(graph, *v) == Some(to);
    [Some(x), before].into_iter().flatten().find(|v| same(v) && !to.contains(&Dim::Unknown))
}

/// The input of the reshape below, where this one can read it directly.
fn through(graph: &Graph, node: &Node) -> Option<ValueId> {
    let middle = node.input(0)?;
    let x = graph.made_by(middle, "Reshape")?.input(0)?;
    let target = graph.as_const(node.input(1)?)?.to_i64()?;
    let (from, between) = (shape(graph, x)?, shape(graph, middle)?);
    let copies_same = |i: usize| from.get(i).is_some_and(|d| *d != Dim::Unknown && between.get(i) == Some(d));
    let safe = node.op.int("allowzero") != Some(1)
        && target.iter().enumerate().all(|(i, t)| *t != 0 || copies_same(i));
    safe.then_some(x)
}
