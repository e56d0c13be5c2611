//! Matches: `Mul(s, c)` where s is a product of queries and keys, scaled by a number or not, and c a constant with a number for
//! each head, as a temperature that was learned
//! Becomes: the same of queries that were multiplied by c
//! Exact: up to rounding (a product rounds as its factors do, in another order)
//! Declines when: what is multiplied is no product by head, or more than this reads it

use super::scale_scale::scaled;
use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct HeadScales;

impl GraphRule for HeadScales {
    fn name(&self) -> &'static str {
        "head_scales"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let is_product = node.op.is("Mul") && node.op.domain().is_empty();
            let found = is_product.then(|| [0, 1].into_iter().find_map(|slot| by_head(w, node, slot)));
            found.flatten().map(|scores| vec![scores])
        })
    }
}

/// The scores of queries that are multiplied by what is in the other slot.
fn by_head(w: &mut Sweep<'_>, node: &Node, slot: usize) -> Option<ValueId> {
    let (scores, each) = (node.input(slot)?, node.input(1 - slot)?);
    let Scores { q, k, scale } = scores_of(w.graph, scores)?;
    is_of_heads(w.graph, each, q).then_some(())?;
    let [q, k, each] = [q, k, each].map(|v| w.current(v));
    let scaled = w.patch.mul(q, each);
    let product = w.patch.matmul(scaled, k);
    Some(scale.map_or(product, |scale| w.patch.mul_scalar(product, scale)))
}

struct Scores {
    q: ValueId,
    k: ValueId,
    scale: Option<f64>,
}

fn scores_of(graph: &Graph, value: ValueId) -> Option<Scores> {
    let made = |v: ValueId| graph.producer(v).map(|(id, _)| graph.node(id));
    let is_read_here_alone = |v: ValueId| graph.value(v).uses.len() == 1;
    let (product, scale) = match scaled(graph, made(value)?) {
        Some((product, scale)) if is_read_here_alone(product) => (product, Some(scale)),
        _ => (value, None),
    };
    let node = graph.made_by(product, "MatMul").filter(|_| is_read_here_alone(value))?;
    Some(Scores { q: node.input(0)?, k: node.input(1)?, scale })
}

/// Whether a constant has a number for each head of `[batch, heads, tokens, dim]`.
fn is_of_heads(graph: &Graph, each: ValueId, q: ValueId) -> bool {
    let Some([_, Dim::Known(heads), _, _]) = graph.value(q).ty.shape.as_deref() else { return false };
    let dims = graph.as_const(each).map(|tensor| tensor.dims().to_vec()).unwrap_or_default();
    let is_shaped = matches!(dims.as_slice(), [own, 1, 1] | [1, own, 1, 1] if own == heads);
    is_shaped && *heads > 1
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const TEXT: &str = r#"graph "g" {
  input %q: f32[batch, 2, time, 4]
  input %k: f32[batch, 2, 4, time]
  const %number: f32[] = [0.5]
  const %each: f32[2, 1, 1] = [0.3, 0.7]
  %product = MatMul(%q, %k) "product"
  %scaled = Mul(%product, %number) "scaled"
  %scores = Mul(%scaled, %each) "scores"
  %y = Softmax(%scores) {axis: -1} "y"
  output "y" %y
}"#;

    #[test]
    fn a_number_for_each_head_goes_into_the_queries() {
        insta::assert_snapshot!(after(TEXT));
    }

    #[test]
    fn what_is_no_number_for_each_head_stays() {
        for (from, to) in [
            // One for each query.
            ("%each: f32[2, 1, 1]", "%each: f32[1, 2, 1]"),
            ("%y = Softmax(%scores)", "output \"p\" %product\n  %y = Softmax(%scores)"),
        ] {
            let printed = after(&TEXT.replace(from, to));
            assert!(!printed.contains("= Mul(%q,"), "{to}: {printed}");
        }
    }
}
