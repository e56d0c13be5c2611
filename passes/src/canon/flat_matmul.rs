//! Matches: a weight applied to tokens that were laid out in one row: `MatMul(Reshape(x, [-1, k]), w)`,
//! and `Add` of a bias after that
//! Becomes: the same over `[batch, time, k]`, with the `Reshape` after it
//! Exact: yes

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct FlatMatMul;

impl GraphRule for FlatMatMul {
    fn name(&self) -> &'static str {
        "flat_matmul"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.name() {
            "MatMul" if node.op.is("MatMul") => product(w, node),
            "Add" if node.op.is("Add") => [0, 1].into_iter().find_map(|slot| bias(w, node, slot)),
            _ => None,
        })
    }
}

fn shape(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    graph.value(value).ty.shape.as_deref()
}

/// x in `Reshape(x, [-1, k])`, where x is `[.., .., k]`.
fn tokens(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let x = graph.made_by(value, "Reshape")?.input(0)?;
    let (from, to) = (shape(graph, x)?, shape(graph, value)?);
    let width = to.last()?.known().filter(|n| *n > 0)?;
    (from.len() == 3 && to.len() == 2 && from[2].known() == Some(width)).then_some(x)
}

fn product(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let (flat, weight) = (node.input(0)?, node.input(1)?);
    let x = tokens(w.graph, flat).filter(|_| w.is_untouched(flat))?;
    let width = shape(w.graph, weight).filter(|s| s.len() == 2)?[1].known()?;
    let (x, weight) = (w.current(x), w.current(weight));
    let y = w.patch.matmul(x, weight);
    Some(vec![w.patch.reshape(y, &[-1, width as i64])])
}

fn bias(w: &mut Sweep<'_>, node: &Node, slot: usize) -> Option<Vec<ValueId>> {
    let (flat, bias) = (node.input(slot)?, node.input(1 - slot)?);
    let x = tokens(w.graph, flat).filter(|_| w.is_untouched(flat))?;
    let [Dim::Known(width)] = shape(w.graph, bias)? else { return None };
    let width = *width;
    let row = shape(w.graph, x)?[2] == Dim::Known(width);
    let (x, bias) = (w.current(x), w.current(bias));
    let y = if row { w.patch.add(x, bias) } else { return None };
    Some(vec![w.patch.reshape(y, &[-1, width as i64])])
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn projections_keep_batch_and_time_apart() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: f32[4, 6] = random(1)
  weight %b: f32[6] = random(2)
  const %rows: i64[2] = [-1, 4]
  const %pairs: i64[2] = [-1, 2]
  const %six: i64[1] = [6]
  weight %u: f32[2, 6] = random(3)
  %s = Shape(%x) {start: 0, end: 2}
  %to = Concat(%s, %six) {axis: 0}
  %r = Reshape(%x, %rows)
  %y = Gemm(%r, %w, %b)
  %z = Reshape(%y, %to)
  %p = Reshape(%x, %pairs)
  %q = MatMul(%p, %u)
  output "z" %z
  output "rows are cut up" %q
}"#
        ));
    }
}
