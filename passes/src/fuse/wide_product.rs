//! Matches: a product with several weights as one, and another product of the same value
//! Becomes: one product, and a split in two. Biases of both are added before the split, which another split may then join
//! Exact: yes, up to the order of summation
//! Declines when: neither weight is a join of three, as the split then costs what a product saves, or both are, or there
//! are more products

use super::stored_product::{StoredProduct, products_of, stored_product};
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::serving_graph::join_weights::count;
use dijiang_format::joined::MOST_PARTS;

pub(super) struct WideProduct;

/// Weights of a join, at least.
const JOIN: usize = 3;

impl GraphRule for WideProduct {
    fn name(&self) -> &'static str {
        "wide_product"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let first = stored_product(w.graph, node)?;
            let all = beside(w.graph, &first);
            let counts: Vec<usize> = all.iter().map(|one| count(w.graph, one.weight)).collect();
            let is_wide = all.len() == 2 && counts.iter().filter(|terms| **terms >= JOIN).count() == 1;
            if !is_wide || all[0].product != first.product || counts.iter().sum::<usize>() > MOST_PARTS {
                return None;
            }
            let weights: Vec<ValueId> = all.iter().map(|one| one.weight).collect();
            let sizes: Vec<i64> = all.iter().map(|one| one.rows).collect();
            let weight = w.patch.concat(&weights, 0);
            let biased: Option<Vec<Biased>> = all.iter().map(|one| biased(w.graph, one)).collect();
            let bias = biased.as_ref().map(|all| {
                let biases: Vec<ValueId> = all.iter().map(|one| one.bias).collect();
                w.patch.concat(&biases, 0)
            });
            let x = w.current(first.x);
            let y = w.patch.linear(x, weight, bias);
            let axis = w.patch.rank(y) as i64 - 1;
            let parts = w.patch.split(y, axis, &sizes);
            for (i, part) in parts.into_iter().enumerate() {
                match biased.as_ref().map(|all| &all[i]) {
                    Some(one) => one.stands_for(w, part),
                    None => w.stand_for(all[i].product, part),
                }
            }
            // The first stands for itself by now.
            None
        })
    }
}

/// What is made of a product and its bias.
struct Biased {
    bias: ValueId,
    y: ValueId,
    is_gelu: bool,
}

impl Biased {
    fn stands_for(&self, w: &mut Sweep<'_>, sum: ValueId) {
        let y = match self.is_gelu {
            true => w.patch.node(Op::in_domain("com.microsoft", "Gelu"), &[sum]),
            false => sum,
        };
        w.stand_for(self.y, y);
    }
}

fn biased(graph: &Graph, one: &StoredProduct) -> Option<Biased> {
    if let Some(bias) = one.bias {
        return Some(Biased { bias, y: one.y, is_gelu: false });
    }
    let [Use::Node { node, slot: 0 }] = graph.value(one.product).uses[..] else { return None };
    let gelu = graph.node(node);
    let bias = gelu.input(1).filter(|_| gelu.op.name() == "BiasGelu")?;
    Some(Biased { bias, y: gelu.outputs[0], is_gelu: true })
}

/// The products of one value with weights of one type, in the order of their reading.
fn beside(graph: &Graph, one: &StoredProduct) -> Vec<StoredProduct> {
    let dtype = |value: ValueId| graph.value(value).ty.dtype;
    let readers = products_of(graph, one.x).into_iter();
    readers.filter(|other| dtype(other.weight) == dtype(one.weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::WideProduct;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};

    fn text(join: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, time, 4]
  weight %q: f32[2, 4] = random(1)
  weight %k: f32[1, 4] = random(2)
  weight %u: f32[3, 4] = random(3)
  weight %c: f32[3] = [1.0, -1.0, 0.5]
  %qkv = Concat({join}) {{axis: 0}}
  %tq = Transpose(%qkv) {{perm: [1, 0]}}
  %tu = Transpose(%u) {{perm: [1, 0]}}
  %a = MatMul(%x, %tq)
  %p = MatMul(%x, %tu)
  %s = com.microsoft.BiasGelu(%p, %c)
  output "a" %a
  output "s" %s
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 3, 4])];

    #[test]
    fn a_join_and_another_product_are_one() {
        insta::assert_snapshot!(after(&WideProduct, &text("%q, %k, %k"), &INPUTS));
    }

    #[test]
    fn biases_of_both_are_added_at_once() {
        let text = text("%q, %k, %k").replace(
            "  %a = MatMul(%x, %tq)\n",
            "  weight %b: f32[4] = random(4)\n  %m = MatMul(%x, %tq)\n  %a = Add(%m, %b)\n",
        );
        insta::assert_snapshot!(after(&WideProduct, &text, &INPUTS));
    }

    #[test]
    fn two_small_ones_stay() {
        let text = text("%q, %k");
        assert_eq!(after(&WideProduct, &text, &INPUTS), print(&parse(&text).expect("a graph")));
    }
}
