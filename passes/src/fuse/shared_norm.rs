//! Matches: two layer norms or more of one value, with one ε, that only products with weights read, and what wants the
//! shape, as where attention and MLP read one residual (GPT-NeoX)
//! Becomes: one norm that multiplies by 1 and adds nothing; the products have what the norms multiplied in the columns
//! of their weights, and what they added, times the weight, in their biases
//! Exact: up to rounding of the weights
//! Declines when: something else reads a norm, or a product has no bias to take what the norm adds

use super::stored_product::{StoredProduct, bias_sum, stored_product};
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::tensor::Tensor;
use crate::serving_graph::join_weights::can_scale;
use dijiang_format::dtype::DType;

pub(super) struct SharedNorm;

impl GraphRule for SharedNorm {
    fn name(&self) -> &'static str {
        "shared_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let first = norm(w.graph, node)?;
            let all = beside(w.graph, &first);
            if all.len() < 2 || all[0].y != first.y {
                return None;
            }
            let shared = bare_norm(w, node, &first)?;
            for norm in &all {
                for product in &norm.products {
                    let y = folded(w, norm, product, shared);
                    w.stand_for(product.y, y);
                }
                // What is left of its readers wants its shape.
                w.stand_for(norm.y, shared);
            }
            None
        })
    }
}

struct Norm {
    x: ValueId,
    y: ValueId,
    epsilon: f32,
    weight: ValueId,
    bias: Option<ValueId>,
    products: Vec<StoredProduct>,
}

fn norm(graph: &Graph, node: &Node) -> Option<Norm> {
    let last = graph.value(node.input(0)?).ty.rank()? as i64 - 1;
    let is_of_rows = node.op.is("LayerNormalization")
        && node.outputs.len() == 1
        && matches!(node.op.int("axis"), Some(axis) if axis == -1 || axis == last);
    let (weight, bias) = (node.input(1).filter(|_| is_of_rows)?, node.input(2));
    let y = node.outputs[0];
    let products = all_products(graph, y)?;
    // A bias where there was none would be a sum more.
    let takes = |product: &StoredProduct| {
        can_scale(graph, product.weight, weight)
            && bias.is_none_or(|bias| product.bias.is_some() && can_scale(graph, product.weight, bias))
    };
    if products.is_empty() || !products.iter().all(takes) {
        return None;
    }
    Some(Norm { x: node.input(0)?, y, epsilon: node.op.float("epsilon")?, weight, bias, products })
}

/// What reads a value, where that is products alone, some of them after a cast.
fn all_products(graph: &Graph, value: ValueId) -> Option<Vec<StoredProduct>> {
    let mut all = Vec::new();
    for user in graph.value(value).uses.iter().filter(|user| !is_shape(graph, **user)) {
        let Use::Node { node, slot: 0 } = user else { return None };
        let node = graph.node(*node);
        match stored_product(graph, node) {
            Some(found) => all.push(found.with_late_bias(graph)),
            None if node.op.is("Cast") => all.extend(all_products(graph, node.outputs[0])?),
            None => return None,
        }
    }
    Some(all)
}

fn is_shape(graph: &Graph, user: Use) -> bool {
    matches!(user, Use::Node { node, .. } if graph.node(node).op.is("Shape"))
}

/// The norms of one value, in the order of their reading.
fn beside(graph: &Graph, one: &Norm) -> Vec<Norm> {
    let readers = graph.value(one.x).uses.iter().filter_map(|user| match user {
        Use::Node { node, slot: 0 } => norm(graph, graph.node(*node)),
        _ => None,
    });
    readers.filter(|other| other.epsilon.to_bits() == one.epsilon.to_bits()).collect()
}

fn bare_norm(w: &mut Sweep<'_>, node: &Node, norm: &Norm) -> Option<ValueId> {
    let ty = &w.graph.value(norm.weight).ty;
    let (width, dtype) = (ty.shape.as_ref()?[0].known()? as usize, ty.dtype?);
    let op = Op::new("LayerNormalization").with("axis", -1).with("epsilon", node.op.float("epsilon")?);
    let ones = w.patch.constant("ones", Tensor::from_f32(&[width as u64], &vec![1.0; width]).cast(dtype));
    let x = w.current(norm.x);
    Some(w.patch.node(op, &[x, ones]))
}

fn folded(w: &mut Sweep<'_>, norm: &Norm, product: &StoredProduct, shared: ValueId) -> ValueId {
    let p = &mut w.patch;
    let of = p.dtype(product.weight);
    let gain = p.cast(norm.weight, of);
    let weight = p.mul(product.weight, gain);
    let dtype = if product.is_widened { DType::F32 } else { p.dtype(product.y) };
    let moved = norm.bias.map(|bias| {
        let bias = p.cast(bias, of);
        let moved = p.matmul(product.weight, bias);
        p.cast(moved, dtype)
    });
    let bias = bias_sum(p, product.bias, moved);
    let x = p.cast(shared, of);
    product.written(p, x, weight, bias)
}

#[cfg(test)]
mod tests {
    use super::SharedNorm;
    use crate::fuse::tests::after;
    use crate::ir::text::parse;
    use crate::serving_graph::join_weights::as_inputs;

    fn text(epsilon: &str, read: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, time, 4]
  weight %g: f32[4] = [1.0, 2.0, 3.0, 4.0]
  weight %b: f32[4] = [0.5, -0.5, 1.0, 0.0]
  weight %h: f32[4] = [0.25, 1.0, -1.0, 2.0]
  weight %q: f32[2, 4] = random(1)
  weight %u: f32[3, 4] = random(2)
  weight %c: f32[3] = [1.0, -1.0, 0.5]
  weight %d: f32[2] = [2.0, 0.0]
  %n = LayerNormalization(%x, %g, %b) {{axis: -1, epsilon: 0.25}}
  %m = LayerNormalization(%x, %h, %b) {{axis: -1, epsilon: {epsilon}}}
  %tq = Transpose(%q) {{perm: [1, 0]}}
  %tu = Transpose(%u) {{perm: [1, 0]}}
  %pa = MatMul(%n, %tq)
  %a = Add(%pa, %d)
  %p = MatMul(%m, %tu)
  %s = Add(%p, %c)
  %dims = Shape(%n)
  output "dims" %dims
  output "a" %a
  output "s" %{read}
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 3, 4])];

    #[test]
    fn two_norms_of_one_value_are_one() {
        let shared = after(&SharedNorm, &text("0.25", "s"), &INPUTS);
        insta::assert_snapshot!(shared);
        let mut graph = parse(&shared).expect("a graph");
        as_inputs(&mut graph).expect("a patch");
        let mut names: Vec<&str> =
            graph.inputs().iter().map(|input| graph.value(*input).name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["c&u@b", "d&q@b", "q*g", "u*h", "x"]);
    }

    /// As prompts have it, whose gates are computed in f32.
    #[test]
    fn a_product_may_read_a_norm_after_a_cast() {
        let text = text("0.25", "s")
            .replace("f32", "f16")
            .replace("%q: f16", "%q: f32")
            .replace("%d: f16", "%d: f32")
            .replace(
                "  %pa = MatMul(%n, %tq)",
                "  %wide = Cast(%n) {to: \"f32\"}\n  %pa = MatMul(%wide, %tq)",
            );
        insta::assert_snapshot!(after(&SharedNorm, &text, &INPUTS));
    }

    #[test]
    fn norms_with_another_epsilon_another_reader_or_a_product_without_bias_stay() {
        let without = text("0.25", "s").replace("%a = Add(%pa, %d)", "%a = Neg(%pa)");
        for text in [text("0.5", "s"), text("0.25", "m"), without] {
            assert_eq!(
                after(&SharedNorm, &text, &INPUTS),
                crate::ir::text::print(&parse(&text).expect("a graph"))
            );
        }
    }
}
