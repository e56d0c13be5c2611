//! Matches: `Reshape(Transpose(Reshape(x, [-1, m, n]), [0, 2, 1]), [.., n, m])` where x is `[.., m, n]`
//! Becomes: `Transpose` of the last two axes of x
//! Exact: yes

use super::terms::{Term, Terms, dim_of};
use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct ReshapeTransposeReshape;

impl GraphRule for ReshapeTransposeReshape {
    fn name(&self) -> &'static str {
        "reshape_transpose_reshape"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let (x, rank) = transposed(w.graph, &terms, node)?;
            let x = w.current(x);
            let mut perm: Vec<i64> = (0..rank as i64).collect();
            perm.swap(rank - 1, rank - 2);
            Some(vec![w.patch.transpose(x, &perm)])
        })
    }
}

/// The value whose last two axes are transposed, and its rank.
fn transposed(graph: &Graph, terms: &Terms, node: &Node) -> Option<(ValueId, usize)> {
    let transpose = graph.made_by(node.input(0).filter(|_| node.op.is("Reshape"))?, "Transpose")?;
    let inner = graph.made_by(transpose.input(0)?, "Reshape")?;
    if transpose.op.ints("perm") != Some(&[0, 2, 1]) {
        return None;
    }
    let x = inner.input(0)?;
    let rank = graph.value(x).ty.rank().filter(|r| *r >= 3)?;
    let dim = |axis: usize| Some(dim_of(graph, x, axis)).filter(|t| *t != Term::Unknown);
    let (m, n) = (dim(rank - 2)?, dim(rank - 1)?);
    let flat = target(graph, terms, inner)?;
    let back = target(graph, terms, node)?;
    let mut want: Vec<Term> = (0..rank - 2).map(dim).collect::<Option<_>>()?;
    want.extend([n.clone(), m.clone()]);
    let fits = flat.get(1..) == Some(&[m, n]) && back.len() == rank;
    // One dim may be left to be worked out.
    let other: Vec<usize> = (0..rank).filter(|i| back.get(*i) != want.get(*i)).collect();
    let free = |i: &usize| back[*i] == Term::Int(-1);
    (fits && other.len() <= 1 && other.iter().all(free)).then_some((x, rank))
}

/// The dims a `Reshape` asks for, a copied one replaced by what it copies.
fn target(graph: &Graph, terms: &Terms, node: &Node) -> Option<Vec<Term>> {
    let (x, out) = (node.input(0)?, graph.value(node.outputs[0]).ty.shape.as_ref()?);
    let given = terms.get(node.input(1)?)?;
    let entry = |(i, term): (usize, &Term)| match (term, out.get(i)) {
        (Term::Int(0), _) => dim_of(graph, x, i),
        (Term::Int(-1), Some(Dim::Known(n))) => Term::Int(*n as i64),
        (Term::Int(-1), Some(dim @ Dim::Sym(_))) => Term::Dim(dim.clone()),
        (term, _) => term.clone(),
    };
    Some(given.iter().enumerate().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn a_batched_transpose_is_a_transpose() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, 2, time, 4]
  const %four: i64[1] = [4]
  const %rest: i64[1] = [-1]
  %t = Shape(%x) {start: 2, end: 3}
  %b = Shape(%x) {start: 0, end: 2}
  %flat = Concat(%rest, %t, %four) {axis: 0}
  %r = Reshape(%x, %flat)
  %u = Transpose(%r) {perm: [0, 2, 1]}
  %back = Concat(%b, %four, %t) {axis: 0}
  %y = Reshape(%u, %back)
  %mixed = Concat(%b, %t, %four) {axis: 0}
  %z = Reshape(%u, %mixed)
  output "transposed" %y
  output "mixed up" %z
}"#
        ));
    }
}
