//! Matches: `Reshape` to a computed shape, each dim a number, the input's dim in the same place, or
//! (once) anything else
//! Becomes: `Reshape` to a constant shape with 0 for the dims that are copied and -1 for the other one
//! Exact: yes, where the other one was -1 or no dim is empty
//! Declines when: the constant shape says less of the result than the computed one

use super::terms::{Term, Terms};
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct ReshapeTarget;

impl GraphRule for ReshapeTarget {
    fn name(&self) -> &'static str {
        "reshape_target"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let target = simplest(w.graph, &terms, node)?;
            let x = w.input(node, 0)?;
            let new = w.patch.reshape(x, &target);
            says_as_much(w, node.outputs[0], new).then(|| vec![new])
        })
    }
}

/// A dim that has a name in the old shape must not become unknown: a -1 cannot always be worked out.
fn says_as_much(w: &Sweep<'_>, old: ValueId, new: ValueId) -> bool {
    let (old, new) = (w.graph.value(old).ty.shape.as_ref(), w.patch.ty(new).shape.as_ref());
    let known = |d: &Dim| *d != Dim::Unknown;
    old.is_none_or(|old| new.is_some_and(|new| old.iter().zip(new).all(|(o, n)| !known(o) || known(n))))
}

fn simplest(graph: &Graph, terms: &Terms, node: &Node) -> Option<Vec<i64>> {
    if !node.op.is("Reshape") {
        return None;
    }
    let shape = node.input(1)?;
    let old = terms.ints(shape).filter(|_| graph.as_const(shape).is_some());
    let from = graph.value(node.input(0)?).ty.shape.as_deref();
    let to = graph.value(node.outputs[0]).ty.shape.as_deref();
    let x = node.input(0)?;
    let copied = |i: usize| super::terms::dim_of(graph, x, i);
    let mut new = target(terms.get(shape)?, copied, node.op.int("allowzero") == Some(1))?;
    new = fewer_copies(new, from, to);
    (old.as_ref() != Some(&new)).then_some(new)
}

fn target(terms: &[Term], copied: impl Fn(usize) -> Term, keep_zero: bool) -> Option<Vec<i64>> {
    let entry = |(i, term): (usize, &Term)| match term {
        Term::Int(0) if keep_zero => None,
        Term::Int(n) => Some(*n),
        Term::Dim(_) | Term::DimOf(..) if copied(i) == *term => Some(0),
        Term::Dim(_) | Term::DimOf(..) | Term::Unknown => Some(-1),
    };
    let new: Vec<i64> = terms.iter().enumerate().map(entry).collect::<Option<_>>()?;
    (new.iter().filter(|n| **n == -1).count() <= 1).then_some(new)
}

/// A -1 that comes to the input's dim in the same place is written 0; a 0 for a dim that is known is
/// written as the number.
fn fewer_copies(mut target: Vec<i64>, from: Option<&[Dim]>, to: Option<&[Dim]>) -> Vec<i64> {
    let (Some(from), Some(to)) = (from, to) else { return target };
    for (i, entry) in target.iter_mut().enumerate() {
        *entry = match (to.get(i), from.get(i), *entry) {
            (Some(Dim::Known(n)), _, 0 | -1) if *n > 0 => *n as i64,
            (Some(d @ Dim::Sym(_)), Some(f), -1) if d == f => 0,
            (_, _, old) => old,
        };
    }
    only_rest_is_copied(target, from)
}

/// Where all dims but one stay, that one does.
fn only_rest_is_copied(mut target: Vec<i64>, from: &[Dim]) -> Vec<i64> {
    let stays = |(entry, dim): (&i64, &Dim)| *entry == 0 || dim.known().is_some_and(|n| n as i64 == *entry);
    let other = target.iter().zip(from).filter(|pair| !stays(*pair)).count();
    if let (true, 1, Some(rest)) = (target.len() == from.len(), other, target.iter_mut().find(|n| **n == -1))
    {
        *rest = 0;
    }
    target
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn a_rest_beside_dims_that_stay_stays() {
        let text = |to: &str| {
            after(&format!(
                "graph \"g\" {{
  input %x: f32[batch, 4, time, 8]
  const %to: i64[4] = {to}
  %y = Reshape(%x, %to) \"y\"
  output \"y\" %y
}}"
            ))
        };
        assert!(!text("[-1, 4, 0, 8]").contains("Reshape"));
        assert!(text("[-1, 2, 0, 8]").contains("Reshape"));
    }

    #[test]
    fn computed_targets_become_constants_where_at_most_one_dim_is_new() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 8]
  input %n: i64[1]
  const %four: i64[1] = [4]
  const %rest: i64[1] = [-1]
  const %flat: i64[3] = [0, -1, 8]
  %s = Shape(%x) {start: 0, end: 2}
  %b = Shape(%x) {start: 0, end: 1}
  %to = Concat(%s, %four, %rest) {axis: 0}
  %y = Reshape(%x, %to) {allowzero: 1}
  %u = Concat(%b, %n, %rest) {axis: 0}
  %z = Reshape(%x, %u)
  %e = Exp(%y)
  %f = Reshape(%e, %flat)
  output "split" %y
  output "two unknowns" %z
  output "flat" %f
}"#
        ));
    }
}
