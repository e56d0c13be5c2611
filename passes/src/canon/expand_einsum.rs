//! Matches: `Einsum` of two operands that sums over one axis of both and keeps one axis of each, besides those that both and
//! the result have; of one operand it may keep several, as of queries whose heads lie in groups
//! Becomes: `MatMul`, with a `Transpose` of what lies otherwise, and an axis of 1 where only the other operand has one
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
            let mut b = brought(&mut w.patch, b?, &product.right);
            if !product.spread.is_empty() {
                b = w.patch.unsqueeze(b, &product.spread);
            }
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
    /// Where the right factor gets an axis of 1.
    spread: Vec<i64>,
    out: Vec<i64>,
}

impl Product {
    fn of(equation: &Equation) -> Option<Self> {
        let [first, second] = equation.operands.as_slice() else { return None };
        let result = &equation.result;
        let lone = |letters: &[char], other: &[char]| among(letters, |c| !other.contains(c));
        let [of_first, of_second] = [lone(first, second), lone(second, first)];
        let place = |letters: &[char]| result.iter().position(|c| letters.first() == Some(c));
        let is_swapped = match (of_first.len(), of_second.len()) {
            // The rows of a product stand before its columns.
            (1, 1) => place(&of_first) > place(&of_second),
            (several, 1) if several > 1 => false,
            (1, several) if several > 1 => true,
            _ => return None,
        };
        let all = if is_swapped { [second, first] } else { [first, second] };
        let operands = if is_swapped { [1, 0] } else { [0, 1] };
        let (rows, columns) = if is_swapped { (of_second, of_first) } else { (of_first, of_second) };
        let tried: Vec<Self> = rows
            .iter()
            .map(|row| Self::by(all, result, [*row, columns[0]], operands))
            .collect::<Option<_>>()?;
        // Of several rows those that leave an operand or the result as it lies.
        let chosen = tried.iter().position(|p| stays(&p.left)).or(tried.iter().position(|p| stays(&p.out)));
        tried.into_iter().nth(chosen.unwrap_or(0))
    }

    /// The product with one letter for its rows and one for its columns.
    fn by(
        [a, b]: [&Vec<char>; 2],
        result: &[char],
        [row, column]: [char; 2],
        operands: [usize; 2],
    ) -> Option<Self> {
        let summed = <[char; 1]>::try_from(among(a, |c| b.contains(c) && !result.contains(c))).ok()?[0];
        if !result.contains(&row) || !result.contains(&column) {
            return None;
        }
        let batch = among(result, |c| *c != row && *c != column);
        let behind = |batch: &[char], last: [char; 2]| [batch, &last].concat();
        let of_b = among(&batch, |c| b.contains(c));
        // In front of the first that there is, none is needed.
        let is_missing = |c: &char| !b.contains(c);
        let lacks = (0..).zip(&batch).skip_while(|(_, c)| is_missing(c)).filter(|(_, c)| is_missing(c));
        Some(Self {
            operands,
            left: places(a, &behind(&batch, [row, summed]))?,
            right: places(b, &behind(&of_b, [summed, column]))?,
            spread: lacks.map(|(at, _)| at).collect(),
            out: places(&behind(&batch, [row, column]), result)?,
        })
    }
}

fn among(letters: &[char], keep: impl Fn(&char) -> bool) -> Vec<char> {
    letters.iter().copied().filter(|c| keep(c)).collect()
}

/// Where each of the letters stands.
fn places(stand: &[char], wanted: &[char]) -> Option<Vec<i64>> {
    let place = |c: &char| stand.iter().position(|d| d == c).map(|at| at as i64);
    wanted.iter().map(place).collect()
}

fn stays(order: &[i64]) -> bool {
    (0..).zip(order).all(|(at, axis)| at == *axis)
}

/// A value with its axes in this order.
fn brought(p: &mut Patch<'_>, x: ValueId, order: &[i64]) -> ValueId {
    if stays(order) { x } else { p.transpose(x, order) }
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_exact};

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
    fn rows_of_several_axes_stay_where_they_lie() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: f32[4, 6] = random(1)
  %y = Einsum(%x, %w) {equation: "btd,df->btf"} "y"
  %z = Einsum(%w, %y) {equation: "df,btf->btd"} "z"
  output "z" %z
}"#;
        insta::assert_snapshot!(after(text));
        check_exact(text, &[("x", &[2, 3, 4])]);
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
