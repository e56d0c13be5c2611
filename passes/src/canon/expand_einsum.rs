//! Matches: `Einsum` of two operands that sums over one axis of both and keeps one axis of each, besides those that both and
//! the result have
//! Becomes: `MatMul`, with a `Transpose` of what lies otherwise
//! Exact: yes
//! Declines when: an operand has an axis that is summed alone, or there are several axes of a kind

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::ops::einsum::{Equation, equation};
use crate::ir::patch::{Applied, Patch, PatchError};

pub(super) struct ExpandEinsum;

impl GraphRule for ExpandEinsum {
    fn name(&self) -> &'static str {
        "expand_einsum"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if !node.op.is("Einsum") {
                return None;
            }
            let rank = |v: &Option<ValueId>| w.graph.value((*v)?).ty.rank();
            let ranks: Vec<Option<usize>> = node.inputs.iter().map(rank).collect();
            let product = Product::of(&equation(&node.op, &ranks).ok()?)?;
            let [a, b] = product.operands.map(|slot| w.input(node, slot));
            let a = brought(&mut w.patch, a?, &product.left);
            let b = brought(&mut w.patch, b?, &product.right);
            let out = w.patch.matmul(a, b);
            Some(vec![brought(&mut w.patch, out, &product.out)])
        })
    }
}

/// The axes of what is multiplied and of the product, each in the order that it is to have.
struct Product {
    /// Which operand is the left factor, and which the right.
    operands: [usize; 2],
    left: Vec<i64>,
    right: Vec<i64>,
    out: Vec<i64>,
}

impl Product {
    fn of(equation: &Equation) -> Option<Self> {
        let [first, second] = equation.operands.as_slice() else { return None };
        let result = &equation.result;
        // The rows of a product stand before its columns.
        let lone = |letters: &[char], other: &[char]| letters.iter().find(|c| !other.contains(c)).copied();
        let place = |letter: Option<char>| result.iter().position(|c| Some(*c) == letter);
        let is_swapped = place(lone(first, second)) > place(lone(second, first));
        let (a, b) = if is_swapped { (second, first) } else { (first, second) };
        let only = |letters: Vec<char>| <[char; 1]>::try_from(letters).ok().map(|[letter]| letter);
        let among = |all: &[char], keep: &dyn Fn(&char) -> bool| -> Vec<char> {
            all.iter().copied().filter(|c| keep(c)).collect()
        };
        let row = only(among(a, &|c| !b.contains(c)))?;
        let column = only(among(b, &|c| !a.contains(c)))?;
        let summed = only(among(a, &|c| b.contains(c) && !result.contains(c)))?;
        if !result.contains(&row) || !result.contains(&column) {
            return None;
        }
        let batch = among(result, &|c| *c != row && *c != column);
        let behind = |last: [char; 2]| [batch.as_slice(), &last].concat();
        Some(Self {
            operands: if is_swapped { [1, 0] } else { [0, 1] },
            left: places(a, &behind([row, summed]))?,
            right: places(b, &behind([summed, column]))?,
            out: places(&behind([row, column]), result)?,
        })
    }
}

/// Where each of the letters stands.
fn places(stand: &[char], wanted: &[char]) -> Option<Vec<i64>> {
    let place = |c: &char| stand.iter().position(|d| d == c).map(|at| at as i64);
    wanted.iter().map(place).collect()
}

/// A value with its axes in this order.
fn brought(p: &mut Patch<'_>, x: ValueId, order: &[i64]) -> ValueId {
    let stays = (0..).zip(order).all(|(at, axis)| at == *axis);
    if stays { x } else { p.transpose(x, order) }
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn products_of_rows_and_columns_become_such() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %q: f32[batch, 2, time, 4]
  input %k: f32[batch, 2, keys, 4]
  input %v: f32[batch, keys, 2, 4]
  %scores = Einsum(%q, %k) {equation: "bhid,bhjd->bhij"} "scores"
  %y = Einsum(%v, %scores) {equation: "bjhd, bhij -> bihd"} "y"
  output "y" %y
}"#
        ), @r#"
        graph "g" {
          input %q: f32[batch, 2, time, 4]
          input %k: f32[batch, 2, keys, 4]
          input %v: f32[batch, keys, 2, 4]
          %scores/Transpose:0 = Transpose(%k) {perm: [0, 1, 3, 2]} "scores/Transpose": f32[batch, 2, 4, keys]
          %scores/MatMul:0 = MatMul(%q, %scores/Transpose:0) "scores/MatMul": f32[batch, 2, time, keys]
          %y/Transpose:0 = Transpose(%v) {perm: [0, 2, 1, 3]} "y/Transpose": f32[batch, 2, keys, 4]
          %y/MatMul:0 = MatMul(%scores/MatMul:0, %y/Transpose:0) "y/MatMul": f32[batch, 2, time, 4]
          %y/Transpose_1:0 = Transpose(%y/MatMul:0) {perm: [0, 2, 1, 3]} "y/Transpose_1": f32[batch, time, 2, 4]
          output "y" %y/Transpose_1:0
        }
        "#);
    }

    #[test]
    fn other_sums_stay() {
        let text = r#"graph "g" {
  input %a: f32[batch, 2, time, 4]
  input %b: f32[batch, 2, time, 4]
  %scalars = Einsum(%a, %b) {equation: "bhid,bhid->bhi"}
  %alone = Einsum(%a, %b) {equation: "bhid,bhjd->bhj"}
  %two = Einsum(%a, %b) {equation: "bhid,bejd->bhiej"}
  %joined = Einsum(%a, %b) {equation: "bhid,bhjd->bij"}
  output "scalars" %scalars
  output "alone" %alone
  output "two" %two
  output "joined" %joined
}"#;
        assert_eq!(after(text).matches("= Einsum(").count(), 4);
    }
}
