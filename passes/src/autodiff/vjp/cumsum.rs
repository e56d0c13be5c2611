//! `CumSum`: what an element was added to lies the other way.

use super::{Grads, Rule, VjpContext};
use crate::ir::op::Op;

pub(super) const RULES: &[Rule] = &[Rule { op: "CumSum", vjp: cumsum }];

fn cumsum(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, axis) = (ctx.grad()?, ctx.input(1)?);
    let flag = |name: &str| ctx.node.op.int(name).unwrap_or_default();
    let op = Op::new("CumSum").with("exclusive", flag("exclusive")).with("reverse", 1 - flag("reverse"));
    let grad = ctx.patch.node(op, &[g, axis]);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn all_four_directions() {
        for (exclusive, reverse) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            gradcheck(&format!(
                r#"graph "g" {{
  input %x: f32[2, 3, 2]
  const %axis: i64[] = [-2]
  %y = CumSum(%x, %axis) {{exclusive: {exclusive}, reverse: {reverse}}}
  output "y" %y
}}"#
            ));
        }
    }
}
