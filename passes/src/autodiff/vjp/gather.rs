//! `Gather`, as of an embedding: rows are added where they came from.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use dijiang_format::dtype::DType;

pub(super) const RULES: &[Rule] = &[Rule { op: "Gather", vjp: gather }];

/// Scattered along axis 0, which is what `ScatterND` can do; other axes are brought there.
fn gather(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, data, indices) = (ctx.grad()?, ctx.input(0)?, ctx.input(1)?);
    let shape = ctx.shape(data)?;
    let axis = ctx.axis(shape.len())?;
    let picks = ctx.shape(indices)?.len();
    let zeros = zeros_with_axis_first(ctx, data, axis, shape.len());
    let rows = match axis {
        0 => g,
        _ => {
            let (before, after) = (0..axis, axis + picks..shape.len() + picks - 1);
            let perm: Vec<i64> = (axis..axis + picks).chain(before).chain(after).map(|a| a as i64).collect();
            ctx.transpose(g, &perm)
        }
    };
    let places = ctx.patch.cast(indices, DType::I64);
    let places = ctx.patch.unsqueeze(places, &[-1]);
    let sum = ctx.patch.node(Op::new("ScatterND").with("reduction", "add"), &[zeros, places, rows]);
    let grad = match axis {
        0 => sum,
        _ => {
            let perm: Vec<i64> =
                (1..=axis).chain([0]).chain(axis + 1..shape.len()).map(|a| a as i64).collect();
            ctx.patch.transpose(sum, &perm)
        }
    };
    ctx.only(0, grad)
}

fn zeros_with_axis_first(ctx: &mut VjpContext<'_, '_>, data: ValueId, axis: usize, rank: usize) -> ValueId {
    if axis == 0 {
        return ctx.zeros_like(data);
    }
    let order = [axis].into_iter().chain(0..axis).chain(axis + 1..rank);
    let dims: Vec<ValueId> = order.map(|a| ctx.runtime_dim(data, a)).collect();
    let shape = ctx.patch.concat(&dims, 0);
    ctx.zeros(data, shape)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn rows_that_are_read_twice_add_up() {
        gradcheck(
            r#"graph "g" {
  weight %table: f32[5, 3] = random(1)
  const %ids: i32[2, 3] = [0, 3, 3, -1, 3, 0]
  %rows = Gather(%table, %ids)
  output "rows" %rows
}"#,
        );
    }

    #[test]
    fn other_axes_and_a_single_index() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 4, time, 2]
  const %two: i64[2, 2] = [0, 1, 1, -1]
  const %one: i64[] = [-2]
  %a = Gather(%x, %two) {axis: 1}
  %b = Gather(%x, %two) {axis: -2}
  %c = Gather(%x, %one) {axis: -1}
  %d = Gather(%x, %one) {axis: 0}
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
}"#,
        );
    }

    #[test]
    fn a_table_that_is_also_the_head() {
        gradcheck(
            r#"graph "g" {
  weight %table: f32[5, 3] = random(1)
  const %ids: i64[1, 4] = [0, 3, 3, 1]
  %rows = Gather(%table, %ids)
  %head = Transpose(%table) {perm: [1, 0]}
  %logits = MatMul(%rows, %head)
  output "logits" %logits
}"#,
        );
    }
}
