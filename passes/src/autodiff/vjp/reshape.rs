//! `Flatten`, `Reshape`, `Squeeze`, `Unsqueeze`: the same elements under other dims.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Flatten", vjp: reshape },
    Rule { op: "Reshape", vjp: reshape },
    Rule { op: "Squeeze", vjp: squeeze },
    Rule { op: "Unsqueeze", vjp: unsqueeze },
];

fn reshape(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.grad()?, ctx.input(0)?);
    let from = ctx.shape(ctx.output())?;
    let grad = ctx.reshape_like(g, &from, x)?;
    ctx.only(0, grad)
}

fn squeeze(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.grad()?;
    let axes = ctx.node.op.ints("axes").unwrap_or_default().to_vec();
    let grad = ctx.patch.unsqueeze(g, &axes);
    ctx.only(0, grad)
}

fn unsqueeze(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.grad()?;
    let axes = ctx.node.op.ints("axes").unwrap_or_default().to_vec();
    let grad = ctx.patch.squeeze(g, &axes);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{count_in_gradients, gradcheck};

    const SPLIT: &str = r#"graph "g" {
  input %x: f32[batch, time, 6]
  const %heads: i64[4] = [0, 0, 2, 3]
  const %flat: i64[2] = [-1, 6]
  const %transposed: i64[3] = [6, 0, -1]
  %a = Reshape(%x, %heads)
  %b = Reshape(%x, %flat)
  %c = Reshape(%x, %transposed)
  %d = Flatten(%x) {axis: -1}
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
}"#;

    #[test]
    fn elements_go_back() {
        gradcheck(SPLIT);
    }

    #[test]
    fn one_unknown_dim_needs_no_computed_shape() {
        let loss = |target: &str| {
            format!(
                r#"graph "g" {{
  input %x: f32[batch, time, 6]
  const %target: {target}
  %a = Reshape(%x, %target)
  %s = ReduceSumSquare(%a) {{keepdims: 0}}
  output "s" %s
}}"#
            )
        };
        assert_eq!(count_in_gradients(&loss("i64[4] = [0, 0, 2, 3]"), "Shape"), 0);
        assert_eq!(count_in_gradients(&loss("i64[3] = [6, 0, -1]"), "Shape"), 0);
        assert_eq!(count_in_gradients(&loss("i64[2] = [-1, 6]"), "Shape"), 2);
    }

    #[test]
    fn ones_come_and_go() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 1, 3, 1]
  %a = Squeeze(%x) {axes: [-1, 1]}
  %b = Unsqueeze(%x) {axes: [0, -1]}
  %c = Squeeze(%x) {axes: [-3]}
  output "a" %a
  output "b" %b
  output "c" %c
}"#,
        );
    }
}
