//! `MatMul`: dA = g Bᵀ and dB = Aᵀ g, summed over the batch axes in which a side was broadcast.

use super::{AutodiffError, Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::{Dim, Shape};

pub(super) const RULES: &[Rule] = &[Rule { op: "MatMul", vjp: matmul }];

/// A side as a stack of matrices.
struct Side {
    value: ValueId,
    shape: Shape,
    /// As it is in the graph.
    source: ValueId,
    /// The axis that a vector was given.
    added: Option<usize>,
}

fn side(ctx: &mut VjpContext<'_, '_>, slot: usize) -> Result<Side, AutodiffError> {
    let source = ctx.input(slot)?;
    let mut shape = ctx.shape(source)?;
    if shape.len() > 1 {
        return Ok(Side { value: source, shape, source, added: None });
    }
    shape.insert(slot, Dim::Known(1));
    let value = ctx.patch.unsqueeze(source, &[slot as i64]);
    Ok(Side { value, shape, source, added: Some(slot) })
}

fn matmul(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (a, b) = (side(ctx, 0)?, side(ctx, 1)?);
    let (mut g, mut out) = (ctx.grad()?, ctx.shape(ctx.output())?);
    if b.added.is_some() {
        g = ctx.patch.unsqueeze(g, &[-1]);
        out.push(Dim::Known(1));
    }
    if a.added.is_some() {
        g = ctx.patch.unsqueeze(g, &[-2]);
        out.insert(out.len() - 1, Dim::Known(1));
    }
    let mut grads = vec![None, None];
    if ctx.wants(0) {
        let grad = left(ctx, &a, &b, g, &out)?;
        grads[0] = Some(without_added(ctx, grad, &a));
    }
    if ctx.wants(1) {
        let grad = right(ctx, &a, &b, g, &out)?;
        grads[1] = Some(without_added(ctx, grad, &b));
    }
    Ok(grads)
}

fn without_added(ctx: &mut VjpContext<'_, '_>, grad: ValueId, side: &Side) -> ValueId {
    match side.added {
        Some(axis) => ctx.patch.squeeze(grad, &[axis as i64]),
        None => grad,
    }
}

/// The batch axes of the product with the last two of a side.
fn unsummed(out: &[Dim], side: &Side) -> Shape {
    [&out[..out.len() - 2], &side.shape[side.shape.len() - 2..]].concat()
}

fn left(
    ctx: &mut VjpContext<'_, '_>,
    a: &Side,
    b: &Side,
    g: ValueId,
    out: &[Dim],
) -> Result<ValueId, AutodiffError> {
    let transposed = ctx.transposed(b.value);
    let product = ctx.patch.matmul(g, transposed);
    ctx.sum_to(product, &unsummed(out, a), &a.shape, a.source)
}

fn right(
    ctx: &mut VjpContext<'_, '_>,
    a: &Side,
    b: &Side,
    g: ValueId,
    out: &[Dim],
) -> Result<ValueId, AutodiffError> {
    let transposed = ctx.is_transposed(b.value);
    if let Some((rows, g)) = flat(ctx, a, b, g) {
        let sides = if transposed { [g, rows] } else { [rows, g] };
        let grad = ctx.patch.node(Op::new("Gemm").with("transA", 1), &sides);
        return Ok(if transposed { ctx.transposed(grad) } else { grad });
    }
    let (rows, g, to) = folded(ctx, a, b, g, &unsummed(out, b));
    let product = match transposed {
        // What was transposed on the way in need not be transposed on the way out.
        true => {
            let columns = ctx.transposed(g);
            let product = ctx.patch.matmul(columns, rows);
            ctx.transposed(product)
        }
        false => {
            let columns = ctx.transposed(rows);
            ctx.patch.matmul(columns, g)
        }
    };
    ctx.sum_to(product, &to, &b.shape, b.source)
}

/// For a matrix that all rows are multiplied by: the rows as one matrix, on both sides.
fn flat(ctx: &mut VjpContext<'_, '_>, a: &Side, b: &Side, g: ValueId) -> Option<(ValueId, ValueId)> {
    let [Dim::Known(k), Dim::Known(n)] = b.shape.as_slice() else { return None };
    if a.shape.len() == 2 {
        return Some((a.value, g));
    }
    Some((ctx.patch.reshape(a.value, &[-1, *k as i64]), ctx.patch.reshape(g, &[-1, *n as i64])))
}

/// Batch axes at the end in which B is 1 become rows, so that the product sums over them.
fn folded(
    ctx: &mut VjpContext<'_, '_>,
    a: &Side,
    b: &Side,
    g: ValueId,
    to: &[Dim],
) -> (ValueId, ValueId, Shape) {
    let batch = b.shape.len() - 2;
    let first = b.shape[..batch].iter().rposition(|d| *d != Dim::Known(1)).map_or(0, |i| i + 1);
    let grown = a.shape.len() == b.shape.len() && a.shape[first..batch].iter().any(|d| *d != Dim::Known(1));
    if !grown {
        return (a.value, g, to.to_vec());
    }
    let ones = batch - first;
    let target: Vec<i64> = [vec![0; first], vec![1; ones], vec![-1, 0]].concat();
    let mut shape = to.to_vec();
    shape[first..batch].fill(Dim::Known(1));
    (ctx.patch.reshape(a.value, &target), ctx.patch.reshape(g, &target), shape)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{count_in_gradients, gradcheck};

    #[test]
    fn every_broadcast_of_batches() {
        let cases = [
            ("[2, 3]", "[3, 4]"),
            ("[2, 2, 3]", "[3, 4]"),
            ("[batch, time, 3]", "[3, 4]"),
            ("[batch, time, wide]", "[wide, 4]"),
            ("[2, 3]", "[batch, 3, 4]"),
            ("[batch, 2, 3, time]", "[batch, 1, time, 4]"),
            ("[batch, 1, 3, 2]", "[batch, 3, 2, 4]"),
            ("[batch, 2, 3, time, 4]", "[batch, 2, 1, 4, time]"),
            ("[batch, 2, 3, time, 4]", "[1, 1, 4, time]"),
            ("[3]", "[3, 4]"),
            ("[2, 3]", "[3]"),
            ("[batch, 2, 3]", "[3]"),
            ("[3]", "[batch, 3, 4]"),
            ("[3]", "[3]"),
        ];
        for (a, b) in cases {
            gradcheck(&format!(
                r#"graph "g" {{
  input %a: f32{a}
  input %b: f32{b}
  %y = MatMul(%a, %b)
  output "y" %y
}}"#
            ));
        }
    }

    #[test]
    fn keys_that_are_shared_by_a_group() {
        gradcheck(
            r#"graph "g" {
  input %q: f32[batch, 2, 3, time, 4]
  input %k: f32[batch, 2, time, 4]
  %one = Unsqueeze(%k) {axes: [2]}
  %t = Transpose(%one) {perm: [0, 1, 2, 4, 3]}
  %y = MatMul(%q, %t)
  output "y" %y
}"#,
        );
    }

    #[test]
    fn a_turned_weight_is_not_turned_again() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 3]
  weight %w: f32[4, 3] = random(1)
  %t = Transpose(%w) {perm: [1, 0]}
  %y = MatMul(%x, %t)
  output "y" %y
}"#;
        gradcheck(text);
        let loss =
            text.replace("output \"y\" %y", "%s = ReduceSumSquare(%y) {keepdims: 0}\n  output \"s\" %s");
        assert_eq!(count_in_gradients(&loss, "Transpose"), 0);
        let straight = loss.replace("f32[4, 3]", "f32[3, 4]").replace("MatMul(%x, %t)", "MatMul(%x, %w)");
        assert_eq!(count_in_gradients(&straight, "Transpose"), 1);
    }
}
