//! `Transpose`.

use super::{Grads, Rule, VjpContext};

pub(super) const RULES: &[Rule] = &[Rule { op: "Transpose", vjp: transpose }];

fn transpose(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.grad()?;
    let perm = ctx.node.op.ints("perm").unwrap_or_default().to_vec();
    let mut inverse = vec![0; perm.len()];
    for (i, axis) in perm.iter().enumerate() {
        inverse[ctx.resolve(*axis, perm.len())?] = i as i64;
    }
    let grad = ctx.transpose(g, &inverse);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn the_axes_go_back() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 3, time, 2]
  %t = Transpose(%x) {perm: [2, 0, 3, 1]}
  %u = Transpose(%t) {perm: [3, 1, 0, 2]}
  output "t" %t
  output "u" %u
}"#,
        );
    }
}
