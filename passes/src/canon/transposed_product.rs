//! Matches: `Transpose` of the last two axes of `MatMul(a, Transpose(b))`, which turns the same two, where nothing else reads
//! the product: scores that were made as keys by queries
//! Becomes: `MatMul(b, Transpose(a))`
//! Exact: yes, up to the order of sums
//! Declines when: axes before the last two are moved too

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct TransposedProduct;

impl GraphRule for TransposedProduct {
    fn name(&self) -> &'static str {
        "transposed_product"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let product = turned(node)?;
            let made = w.graph.made_by(product, "MatMul").filter(|_| w.is_untouched(product))?;
            let is_read_once = w.graph.value(product).uses.len() == 1;
            let right = made.input(1).filter(|right| is_read_once && w.is_untouched(*right))?;
            let other = turned(w.graph.made_by(right, "Transpose")?)?;
            let (a, b) = (w.current(made.input(0)?), w.current(other));
            let rank = w.patch.ty(a).rank().filter(|rank| w.patch.ty(b).rank() == Some(*rank))?;
            let a = w.patch.transpose(a, &last_two(rank));
            Some(vec![w.patch.matmul(b, a)])
        })
    }
}

/// What a node turns the last two axes of, and no others.
fn turned(node: &Node) -> Option<ValueId> {
    let perm = node.op.ints("perm").filter(|_| node.op.is("Transpose"))?;
    (perm.len() >= 2 && perm == last_two(perm.len())).then(|| node.input(0))?
}

fn last_two(rank: usize) -> Vec<i64> {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 2, rank - 1);
    perm
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const TEXT: &str = r#"graph "g" {
  input %q: f32[batch, 4, time, 8]
  input %k: f32[batch, 4, keys, 8]
  %t = Transpose(%q) {perm: [0, 1, 3, 2]} "t"
  %s = MatMul(%k, %t) "s"
  %y = Transpose(%s) {perm: [0, 1, 3, 2]} "y"
  output "y" %y
}"#;

    #[test]
    fn keys_by_queries_are_queries_by_keys() {
        insta::assert_snapshot!(after(TEXT), @r#"
        graph "g" {
          input %q: f32[batch, 4, time, 8]
          input %k: f32[batch, 4, keys, 8]
          %y/Transpose:0 = Transpose(%k) {perm: [0, 1, 3, 2]} "y/Transpose": f32[batch, 4, 8, keys]
          %y/MatMul:0 = MatMul(%q, %y/Transpose:0) "y/MatMul": f32[batch, 4, time, keys]
          output "y" %y/MatMul:0
        }
        "#);
    }

    #[test]
    fn a_product_that_is_read_as_it_is_stays() {
        let read = TEXT.replace("  output \"y\" %y", "  output \"y\" %y\n  output \"s\" %s");
        assert!(after(&read).contains("MatMul(%k, %t)"));
        let moved = TEXT
            .replace("%y = Transpose(%s) {perm: [0, 1, 3, 2]}", "%y = Transpose(%s) {perm: [1, 0, 3, 2]}");
        assert!(after(&moved).contains("MatMul(%k, %t)"));
    }
}
