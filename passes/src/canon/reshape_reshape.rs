//! Matches: `Reshape(Reshape(x, s), t)` where t copies no dim of s that x has not in the same place,
//! and a `Reshape` that changes nothing
//! Becomes: `Reshape(x, t)`, or `x` where the shapes are equal, whatever lay between
//! Exact: yes, where a dim that is left to be worked out is -1 and no other is empty

use super::GraphRule;
use super::terms::{Term, Terms};
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
        let terms = Terms::of(graph);
        for (_, node) in graph.nodes().filter(|(_, n)| n.op.is("Reshape")) {
            let unchanged = changes_nothing(graph, node).or_else(|| turns_back(graph, &terms, node));
            let new = match (unchanged, through(graph, node)) {
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

/// What the reshape below was given, where this one is told its dims, all but one at most.
fn turns_back(graph: &Graph, terms: &Terms, node: &Node) -> Option<ValueId> {
    let x = graph.made_by(node.input(0)?, "Reshape")?.input(0)?;
    let (told, dims) = (terms.get(node.input(1)?)?, shape(graph, x)?);
    let is_known = |dim: &Dim| *dim != Dim::Unknown;
    let says_less = |to: &Vec<Dim>| to.iter().zip(dims).any(|(to, dim)| is_known(to) && !is_known(dim));
    if shape(graph, node.outputs[0]).is_some_and(says_less) {
        return None;
    }
    // A 0 would copy a dim of what lies between.
    let is_named = |dim: &Dim| !matches!(dim, Dim::Unknown | Dim::Known(0));
    let is_same = |(told, dim): (&Term, &Dim)| is_named(dim) && *told == Term::from(dim);
    let mut others = told.iter().zip(dims).filter(|pair| !is_same(*pair)).map(|(told, _)| told);
    // What is not followed can be nothing but the rest either.
    let is_open = |told: &Term| matches!(told, Term::Int(-1) | Term::DimOf(..) | Term::Unknown);
    let is_rest = others.next().is_none_or(is_open) && others.next().is_none();
    (told.len() == dims.len() && is_rest).then_some(x)
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

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn heads_that_are_folded_and_unfolded_again_were_not() {
        let text = |back: &str| {
            after(&format!(
                r#"graph "g" {{
  input %x: f32[batch, 4, time, keys]
  const %all: i64[1] = [-1]
  const %heads: i64[1] = [4]
  %rows = Shape(%x) {{start: 2, end: 3}}
  %columns = Shape(%x) {{start: 3}}
  %folded = Concat(%all, %rows, %columns) {{axis: 0}}
  %unfolded = Concat(%all, {back}) {{axis: 0}}
  %y = Reshape(%x, %folded) "y"
  %z = Reshape(%y, %unfolded) "z"
  output "z" %z
}}"#
            ))
        };
        assert!(!text("%heads, %rows, %columns").contains("Reshape"));
        assert!(text("%rows, %heads, %columns").contains("Reshape"));
        assert!(text("%heads, %columns, %rows").contains("Reshape"));
    }
}
