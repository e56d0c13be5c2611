//! `Softmax` and `LogSoftmax`.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] =
    &[Rule { op: "LogSoftmax", vjp: log_softmax }, Rule { op: "Softmax", vjp: softmax }];

/// y (g - Σ g y)
fn softmax(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let axis = ctx.axis(ctx.shape(y)?.len())? as i64;
    let product = ctx.patch.mul(g, y);
    let sum = ctx.patch.reduce("ReduceSum", product, &[axis], true);
    let centred = ctx.patch.sub(g, sum);
    let grad = ctx.patch.mul(centred, y);
    ctx.only(0, grad)
}

/// g - exp(y) Σ g
fn log_softmax(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.grad()?, ctx.output());
    let axis = ctx.axis(ctx.shape(y)?.len())? as i64;
    let sum = ctx.patch.reduce("ReduceSum", g, &[axis], true);
    let share = ctx.patch.exp(y);
    let taken = ctx.patch.mul(share, sum);
    let grad = ctx.patch.sub(g, taken);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn every_axis() {
        for op in ["Softmax", "LogSoftmax"] {
            for axis in [0, 1, -1] {
                gradcheck(&format!(
                    r#"graph "g" {{
  input %x: f32[2, 3, 4]
  %y = {op}(%x) {{axis: {axis}}}
  %m = ReduceMean(%y) {{axes: [1]}}
  output "y" %y
  output "m" %m
}}"#
                ));
            }
        }
    }
}
