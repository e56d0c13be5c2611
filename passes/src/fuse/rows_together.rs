//! Matches: one token of each row, head by head, times a weight per head, `[batch, heads, 1, d] x [heads, d, m]`, with
//! the sum and the softmax after it
//! Becomes: one product per head over the rows of the batch, `[heads, batch, d] x [heads, d, m]`, between two
//! transposes; a GPU runs the other as batch · heads products of one row
//! Exact: yes
//! Declines when: there is more than one token, or the weight is made of more than constants

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::ir::walk::is_made_of_constants;

pub(super) struct RowsTogether;

impl GraphRule for RowsTogether {
    fn name(&self) -> &'static str {
        "rows_together"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if node.op.is("MatMul") {
                together(w, node);
            }
            None
        })
    }
}

/// Rows before heads, or heads before rows.
const SWAP: [i64; 3] = [1, 0, 2];

fn together(w: &mut Sweep<'_>, node: &Node) -> Option<()> {
    let (x, weight) = (node.input(0)?, node.input(1)?);
    let heads = one_token_by_head(w.graph, x)?;
    let fits = is_per_head(w.graph, weight, heads) && w.is_untouched(node.outputs[0]);
    let depth = w.graph.value(x).ty.shape.as_ref()?[3].known().filter(|_| fits)?;
    let following = following(w.graph, node, heads);
    let last = following.last().map_or(node.outputs[0], |id| w.graph.node(*id).outputs[0]);
    let width = w.graph.value(last).ty.shape.as_ref()?[3].known()?;

    let (x, factor) = factor(w.graph, x);
    let x = w.current(x);
    let flat = w.patch.reshape(x, &[0, heads as i64, depth as i64]);
    let mut by_head = w.patch.transpose(flat, &SWAP);
    if let Some(factor) = factor {
        by_head = w.patch.mul(by_head, w.current(factor));
    }
    let mut y = w.patch.matmul(by_head, w.current(weight));
    for id in following {
        let inputs: Vec<ValueId> = w.graph.node(id).inputs.iter().flatten().copied().collect();
        let others = inputs[1..].iter().map(|other| w.current(*other));
        let inputs: Vec<ValueId> = [y].into_iter().chain(others).collect();
        y = w.patch.node(w.graph.node(id).op.clone(), &inputs);
    }
    let by_row = w.patch.transpose(y, &SWAP);
    let y = w.patch.reshape(by_row, &[0, heads as i64, 1, width as i64]);
    w.stand_for(last, y);
    Some(())
}

/// The heads of `[batch, heads, 1, d]`.
fn one_token_by_head(graph: &Graph, x: ValueId) -> Option<u64> {
    match graph.value(x).ty.shape.as_deref()? {
        [_, Dim::Known(heads), Dim::Known(1), Dim::Known(_)] => Some(*heads),
        _ => None,
    }
}

/// A value as a product with a scalar: a runtime takes the scalar into the product that it stands next to.
fn factor(graph: &Graph, x: ValueId) -> (ValueId, Option<ValueId>) {
    let product = graph.made_by(x, "Mul").and_then(|node| Some((node.input(0)?, node.input(1)?)));
    match product.filter(|(_, factor)| graph.as_scalar(*factor).is_some()) {
        Some((x, factor)) => (x, Some(factor)),
        None => (x, None),
    }
}

/// `[heads, ·, ·]`, of constants.
fn is_per_head(graph: &Graph, value: ValueId, heads: u64) -> bool {
    let shape = graph.value(value).ty.shape.as_deref();
    matches!(shape, Some([Dim::Known(own), _, _]) if *own == heads) && is_made_of_constants(graph, value)
}

fn is_row(graph: &Graph, value: ValueId) -> bool {
    graph.value(value).ty.shape.as_deref().is_some_and(|shape| shape[1] == Dim::Known(1))
}

/// What is computed for each head alone, from the product on, as far as nothing else reads it.
fn following(graph: &Graph, product: &Node, heads: u64) -> Vec<NodeId> {
    let mut found = Vec::new();
    let mut value = product.outputs[0];
    while let [Use::Node { node: id, slot: 0 }] = graph.value(value).uses[..] {
        let node = graph.node(id);
        let follows = match node.op.qualified_name().as_str() {
            "Add" => {
                node.input(1).is_some_and(|other| is_per_head(graph, other, heads) && is_row(graph, other))
            }
            "Softmax" => matches!(node.op.int("axis"), Some(-1)),
            _ => false,
        };
        if !follows {
            break;
        }
        found.push(id);
        value = node.outputs[0];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::RowsTogether;
    use crate::fuse::tests::after;

    fn text(time: &str) -> String {
        r#"graph "g" {
  input %x: f32[batch, 2, TIME, 3]
  weight %w: f32[2, 3, 2] = [1.0, 0.5, 1.0, 0.0, 1.0, 0.0, -1.0, 1.0, 0.0, 1.0, 0.0, 0.5]
  weight %d: f32[2, 1, 2] = [0.0, 1.0, 0.5, -1.0]
  const %half: f32[] = [0.5]
  %h = Mul(%x, %half)
  %p = MatMul(%h, %w)
  %s = Add(%p, %d)
  %y = Softmax(%s) {axis: -1}
  %z = Exp(%y)
  output "z" %z
}"#
        .replace("TIME", time)
    }

    #[test]
    fn rows_of_one_token_are_one_product_per_head() {
        insta::assert_snapshot!(after(&RowsTogether, &text("1"), &[("x", &[4, 2, 1, 3])]));
    }

    #[test]
    fn several_tokens_stay() {
        insta::assert_snapshot!(after(&RowsTogether, &text("5"), &[("x", &[4, 2, 5, 3])]));
    }
}
