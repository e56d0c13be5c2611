//! `ReduceSum`, `ReduceMean`, `ReduceSumSquare`, `ReduceLogSumExp`.

use super::{AutodiffError, Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::Dim;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "ReduceLogSumExp", vjp: log_sum_exp },
    Rule { op: "ReduceMean", vjp: mean },
    Rule { op: "ReduceSum", vjp: sum },
    Rule { op: "ReduceSumSquare", vjp: sum_square },
];

/// The reduced axes, counted from the front, in order.
pub(super) fn kept_axes(ctx: &VjpContext<'_, '_>) -> Result<Vec<i64>, AutodiffError> {
    let rank = ctx.shape(ctx.input(0)?)?.len();
    let mut axes = match ctx.node.op.ints("axes") {
        Some(axes) => axes.iter().map(|a| ctx.resolve(*a, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    axes.sort_unstable();
    axes.dedup();
    Ok(axes.into_iter().map(|a| a as i64).collect())
}

/// Something of the shape of the output, with ones in place of the axes that are gone.
pub(super) fn unreduced(ctx: &mut VjpContext<'_, '_>, y: ValueId) -> Result<ValueId, AutodiffError> {
    let axes = kept_axes(ctx)?;
    if ctx.node.op.int("keepdims") == Some(1) || axes.is_empty() {
        return Ok(y);
    }
    Ok(ctx.patch.unsqueeze(y, &axes))
}

/// The gradient of a sum stands for its own broadcast.
fn spread(ctx: &mut VjpContext<'_, '_>) -> Result<ValueId, AutodiffError> {
    let g = ctx.loose()?;
    if ctx.patch.ty(g).rank() == Some(0) {
        return Ok(g);
    }
    let g = ctx.grad()?;
    unreduced(ctx, g)
}

fn sum(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let grad = spread(ctx)?;
    ctx.only(0, grad)
}

fn mean(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (spread(ctx)?, ctx.input(0)?);
    let shape = ctx.shape(x)?;
    let axes = kept_axes(ctx)?;
    let known = axes.iter().try_fold(1u64, |n, a| shape[*a as usize].known()?.checked_mul(n));
    let grad = match known {
        Some(n) => ctx.patch.mul_scalar(g, (n as f64).recip()),
        None => {
            let count = count(ctx, x, &axes, &shape);
            ctx.patch.div(g, count)
        }
    };
    ctx.only(0, grad)
}

/// How many elements each mean is over, as a float of rank 0.
fn count(ctx: &mut VjpContext<'_, '_>, x: ValueId, axes: &[i64], shape: &[Dim]) -> ValueId {
    let known: u64 = axes.iter().filter_map(|a| shape[*a as usize].known()).product();
    let mut count = ctx.patch.ints(&[known as i64]);
    for axis in axes.iter().map(|a| *a as usize).filter(|a| shape[*a].known().is_none()) {
        let dim = ctx.runtime_dim(x, axis);
        count = ctx.patch.mul(count, dim);
    }
    let dtype = ctx.patch.dtype(x);
    let count = ctx.patch.squeeze(count, &[0]);
    ctx.patch.cast(count, dtype)
}

fn sum_square(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (spread(ctx)?, ctx.input(0)?);
    let twice = ctx.patch.mul_scalar(g, 2.0);
    let grad = ctx.patch.mul(twice, x);
    ctx.only(0, grad)
}

/// exp(x - y), the softmax.
fn log_sum_exp(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x, y) = (spread(ctx)?, ctx.input(0)?, ctx.output());
    let y = unreduced(ctx, y)?;
    let less = ctx.patch.node(Op::new("Sub"), &[x, y]);
    let share = ctx.patch.exp(less);
    let grad = ctx.patch.mul(g, share);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn axes_dims_kept_and_dropped() {
        for op in ["ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"] {
            gradcheck(&format!(
                r#"graph "g" {{
  input %x: f32[batch, 3, time]
  input %w: f32[batch, 3, time]
  %p = Mul(%x, %w)
  %a = {op}(%p) {{axes: [-1]}}
  %b = {op}(%p) {{axes: [-1, 0], keepdims: 0}}
  %c = {op}(%p) {{keepdims: 0}}
  %d = {op}(%p)
  %e = {op}(%b) {{keepdims: 0}}
  %f = {op}(%p) {{axes: [1]}}
  %g = Add(%a, %c)
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
  output "e" %e
  output "f" %f
  output "g" %g
}}"#
            ));
        }
    }
}
