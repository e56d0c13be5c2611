//! Matches: `Min` of a number n and a dim d of a graph input, where a value with a dim that long is added
//! to, or multiplied with, one of dim d, or where `Reshape` makes the one of the other; and the difference of two such, of p + d
//! and of p, in a `Reshape`
//! Becomes: d; the difference without n
//! Exact: yes, wherever the model runs: where the number is smaller, neither dim is 1 and they differ
//! Declines when: nothing demands that the two are equal, as for a window of keys

use super::terms::{Term, Terms};
use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::{Dim, Shape};

pub(super) struct BoundedDim;

impl GraphRule for BoundedDim {
    fn name(&self) -> &'static str {
        "bounded_dim"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let terms = Terms::of(graph);
        rewrite_nodes(graph, self.name(), |w, node| {
            let rank = |v: ValueId| w.graph.value(v).ty.rank();
            if let Some((dim, least, [end, start])) = difference(w.graph, &terms, node) {
                is_reshaped(w.graph, &terms, &dim, &least).then_some(())?;
                let (end, start) = (w.current(end), w.current(start));
                let new = w.patch.node(Op::new("Sub"), &[end, start]);
                return (w.patch.ty(new).rank() == rank(node.outputs[0])).then(|| vec![new]);
            }
            let Bounded { dim, least, from } = bounded(&terms, node)?;
            let same_type = rank(from) == rank(node.outputs[0]);
            let demanded = are_equal(w.graph, &dim, &least) || is_reshaped(w.graph, &terms, &dim, &least);
            (same_type && demanded).then(|| vec![w.current(from)])
        })
    }
}

/// A dim that is no larger than a number.
struct Bounded {
    dim: Dim,
    /// The smaller one of the dim and the number.
    least: Dim,
    /// What holds the dim.
    from: ValueId,
}

fn bounded(terms: &Terms, node: &Node) -> Option<Bounded> {
    let [Some(a), Some(b)] = node.inputs.as_slice() else { return None };
    if !node.op.is("Min") {
        return None;
    }
    let (dim, number, from) = match (terms.get(*a)?, terms.get(*b)?) {
        ([Term::Dim(d)], [Term::Int(n)]) => (d, n, a),
        ([Term::Int(n)], [Term::Dim(d)]) => (d, n, b),
        _ => return None,
    };
    let number = Dim::Known(u64::try_from(*number).ok().filter(|n| *n > 1)?);
    // What has no name may be any other length.
    let least = Some(dim.least(&number)).filter(|least| *least != Dim::Unknown)?;
    Some(Bounded { dim: dim.clone(), least, from: *from })
}

/// Of what is from one dim to another, no more than a number reaches: the dim without and with that bound, and what it is the
/// difference of.
fn difference(graph: &Graph, terms: &Terms, node: &Node) -> Option<(Dim, Dim, [ValueId; 2])> {
    if !node.op.is("Sub") {
        return None;
    }
    let side = |slot: usize| bounded(terms, graph.made_by(node.input(slot)?, "Min")?);
    let (end, start) = (side(0)?, side(1)?);
    let [Term::Dim(least)] = terms.get(node.outputs[0])? else { return None };
    Some((end.dim.minus(&start.dim), least.clone(), [end.from, start.from]))
}

/// Whether a `Reshape` that changes nothing else fails unless the two are equal.
fn is_reshaped(graph: &Graph, terms: &Terms, dim: &Dim, least: &Dim) -> bool {
    let pair = (Term::from(dim), Term::from(least));
    let differ = |from: &Shape, to: &[Term]| {
        let mut pairs = from.iter().map(Term::from).zip(to.iter().cloned()).filter(|(a, b)| a != b);
        from.len() == to.len() && pairs.next().as_ref() == Some(&pair) && pairs.next().is_none()
    };
    graph.nodes().any(|(_, node)| {
        // Tokens are laid out in one row before, for a product.
        let x =
            node.input(0).map(|x| graph.made_by(x, "Reshape").and_then(|flat| flat.input(0)).unwrap_or(x));
        let from = || graph.value(x?).ty.shape.as_ref().filter(|dims| !dims.contains(&Dim::Unknown));
        let to = || terms.get(node.input(1)?);
        node.op.is("Reshape") && from().zip(to()).is_some_and(|(from, to)| differ(from, to))
    })
}

/// Whether some node fails unless the two are equal.
fn are_equal(graph: &Graph, dim: &Dim, least: &Dim) -> bool {
    let meet = |a: &Shape, b: &Shape| {
        let mut pairs = a.iter().rev().zip(b.iter().rev());
        pairs.any(|(a, b)| (a, b) == (dim, least) || (a, b) == (least, dim))
    };
    graph.nodes().any(|(_, node)| {
        let shape = |slot: usize| graph.value(node.input(slot)?).ty.shape.as_ref();
        (node.op.is("Add") || node.op.is("Mul")) && shape(0).zip(shape(1)).is_some_and(|(a, b)| meet(a, b))
    })
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const CUT: &str = r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %x: f32[batch, time, 8]
  input %rows: f32[rows, 8]
  const %most: i64[1] = [128]
  const %width: i64[1] = [8]
  %b = Shape(%input_ids) {start: 0, end: 1}
  %t = Shape(%input_ids) {start: 1, end: 2}
  %n = Min(%most, %t)
  %to = Concat(%b, %n, %width) {axis: 0}
  %y = Reshape(%rows, %to)
  %z = Add(%y, %x)
  output "z" %z
}"#;

    #[test]
    fn a_table_that_is_long_enough_does_not_bound() {
        insta::assert_snapshot!(after(CUT));
    }

    #[test]
    fn a_window_stays() {
        let window = after(&CUT.replace("Add(%y, %x)", "Exp(%y)"));
        assert!(window.contains("Min(") && window.contains("min(128, time)"), "{window}");
    }

    /// The rows of a table from the past on, as many as it has, as `torch.export` writes them.
    const ROWS: &str = r#"graph "g" {
  input %input_ids: i64[batch, time]
  input %past: f32[batch, past, 8]
  input %x: f32[batch, time, 8]
  const %most: i64[] = [128]
  const %minus: i64[] = [-1]
  const %none: i64[] = [0]
  const %width: i64[1] = [8]
  const %first: i64[1] = [0]
  %b = Shape(%input_ids) {start: 0, end: 1}
  %ts = Shape(%input_ids) {start: 1, end: 2}
  %t = Squeeze(%ts) {axes: [0]}
  %ps = Shape(%past) {start: 1, end: 2}
  %p = Squeeze(%ps) {axes: [0]}
  %all = Add(%p, %t)
  %end = Min(%most, %all)
  %start = Min(%most, %p)
  %less = Mul(%minus, %start)
  %count = Add(%less, %end)
  %n = Max(%none, %count)
  %rows = Unsqueeze(%n) {axes: [0]}
  %to = Concat(%b, %rows, %width) {axis: 0}
  %y = Reshape(%x, %to)
  %z = Exp(%y)
  output "z" %z
  output "n" %n
}"#;

    #[test]
    fn rows_of_a_table_that_is_long_enough_are_as_many_as_the_tokens() {
        insta::assert_snapshot!(after(ROWS));
        let flat = ROWS.replace("Reshape(%x, %to)", "Reshape(%f, %to)");
        let flat = flat.replace("  %y", "  const %row: i64[2] = [-1, 8]\n  %f = Reshape(%x, %row)\n  %y");
        assert!(!after(&flat).contains("Min("));
        // Another batch may make up for fewer rows, and so may what nobody demands.
        let other = after(
            &ROWS
                .replace("Shape(%input_ids) {start: 0, end: 1}", "Shape(%past) {start: 0, end: 1}")
                .replace("%past: f32[batch", "%past: f32[other"),
        );
        assert!(other.contains("Min("), "{other}");
        let free = after(&ROWS.replace("%x: f32[batch, time, 8]", "%x: f32[rows, 8]"));
        assert!(free.contains("Min("), "{free}");
    }

    #[test]
    fn a_length_without_a_name_stays() {
        let twice = CUT.replace("%n = Min(%most, %t)", "%m = Min(%most, %t)\n  %n = Min(%m, %fewer)");
        let twice = twice.replace("  const %width", "  const %fewer: i64[1] = [64]\n  const %width");
        assert_eq!(after(&twice).matches("= Min(").count(), 2);
    }

    #[test]
    fn one_row_for_all_stays() {
        assert!(after(&CUT.replace("[128]", "[1]")).contains("Min("));
    }
}
