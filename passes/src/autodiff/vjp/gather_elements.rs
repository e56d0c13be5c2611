//! `GatherElements`, as of the logit of each label.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

pub(super) const RULES: &[Rule] = &[Rule { op: "GatherElements", vjp: gather_elements }];

fn gather_elements(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (data, indices) = (ctx.input(0)?, ctx.input(1)?);
    let (shape, picked) = (ctx.shape(data)?, ctx.shape(indices)?);
    let axis = ctx.axis(shape.len())?;
    let alike = |(i, (a, b)): (usize, (&Dim, &Dim))| i == axis || a == b;
    let one_each = picked[axis] == Dim::Known(1) && shape.iter().zip(&picked).enumerate().all(alike);
    let grad = match one_each {
        true => one_of_each(ctx, data, indices, axis, shape.len())?,
        false => {
            let g = ctx.grad()?;
            let zeros = ctx.zeros_like(data);
            let op = Op::new("ScatterElements").with("axis", axis as i64).with("reduction", "add");
            ctx.patch.node(op, &[zeros, indices, g])
        }
    };
    ctx.only(0, grad)
}

/// With one index in each lane nothing adds up, and a comparison says where it goes.
fn one_of_each(
    ctx: &mut VjpContext<'_, '_>,
    data: ValueId,
    indices: ValueId,
    axis: usize,
    rank: usize,
) -> Result<ValueId, super::AutodiffError> {
    let g = ctx.grad()?;
    let count = ctx.runtime_dim(data, axis);
    let indices = ctx.patch.cast(indices, DType::I64);
    let none = ctx.patch.constant("none", Tensor::scalar(DType::I64, 0.0));
    let below = ctx.patch.node(Op::new("Less"), &[indices, none]);
    let from_front = ctx.patch.add(indices, count);
    let place = ctx.patch.select(below, from_front, indices);
    let count = ctx.patch.squeeze(count, &[0]);
    let all = ctx.patch.range(count);
    let after: Vec<i64> = (1..(rank - axis) as i64).collect();
    let all = if after.is_empty() { all } else { ctx.patch.unsqueeze(all, &after) };
    let here = ctx.patch.equal(place, all);
    let zero = ctx.patch.scalar_like(g, 0.0);
    Ok(ctx.patch.select(here, g, zero))
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn one_index_in_each_lane_or_several() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 3, 4]
  const %label: i64[2, 3, 1] = [0, 3, -1, 2, 2, 1]
  const %middle: i64[2, 1, 4] = [0, 1, 2, -1, 0, 2, 1, 1]
  const %many: i64[2, 2, 3] = [0, 3, 0, -1, 2, 1, 1, 1, 1, 0, 2, 2]
  %a = GatherElements(%x, %label) {axis: -1}
  %b = GatherElements(%x, %middle) {axis: 1}
  %c = GatherElements(%x, %many) {axis: 2}
  output "a" %a
  output "b" %b
  output "c" %c
}"#,
        );
    }
}
