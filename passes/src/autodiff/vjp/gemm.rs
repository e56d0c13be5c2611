//! `Gemm`: y = α op(A) op(B) + β C, each gradient one `Gemm` again.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;

pub(super) const RULES: &[Rule] = &[Rule { op: "Gemm", vjp: gemm }];

fn product(ctx: &mut VjpContext<'_, '_>, [a, b]: [ValueId; 2], transposed: [bool; 2]) -> ValueId {
    let alpha = ctx.node.op.float("alpha").unwrap_or(1.0);
    let op = Op::new("Gemm").with("alpha", alpha);
    let op = op.with("transA", i64::from(transposed[0])).with("transB", i64::from(transposed[1]));
    ctx.patch.node(op, &[a, b])
}

fn gemm(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (a, b) = (ctx.input(0)?, ctx.input(1)?);
    let transposed = |name: &str| ctx.node.op.int(name) == Some(1);
    let (transposed_a, transposed_b) = (transposed("transA"), transposed("transB"));
    let beta = f64::from(ctx.node.op.float("beta").unwrap_or(1.0));
    let mut grads = vec![None; ctx.node.inputs.len()];
    if ctx.wants(0) {
        let g = ctx.grad()?;
        grads[0] = Some(match transposed_a {
            false => product(ctx, [g, b], [false, !transposed_b]),
            true => product(ctx, [b, g], [transposed_b, true]),
        });
    }
    if ctx.wants(1) {
        let g = ctx.grad()?;
        grads[1] = Some(match transposed_b {
            false => product(ctx, [a, g], [!transposed_a, false]),
            true => product(ctx, [g, a], [true, transposed_a]),
        });
    }
    if ctx.wants(2) {
        let g = ctx.loose()?;
        let sum = ctx.fit(g, 2)?;
        grads[2] = Some(if beta == 1.0 { sum } else { ctx.patch.mul_scalar(sum, beta) });
    }
    Ok(grads)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::gradcheck;

    #[test]
    fn all_four_transposes() {
        for (ta, a) in [(0, "[2, 3]"), (1, "[3, 2]")] {
            for (tb, b) in [(0, "[3, 4]"), (1, "[4, 3]")] {
                for c in ["[4]", "[2, 1]", "[]"] {
                    gradcheck(&format!(
                        r#"graph "g" {{
  input %a: f32{a}
  input %b: f32{b}
  input %c: f32{c}
  %y = Gemm(%a, %b, %c) {{alpha: 0.5, beta: -2.0, transA: {ta}, transB: {tb}}}
  %z = Gemm(%a, %b) {{transA: {ta}, transB: {tb}}}
  output "y" %y
  output "z" %z
}}"#
                    ));
                }
            }
        }
    }
}
