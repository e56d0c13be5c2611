//! `Abs`, `Clip`, `Max`, `Min`, `Relu`, `Where`: each element goes one way. Ties go to the first input.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Abs", vjp: abs },
    Rule { op: "Clip", vjp: clip },
    Rule { op: "Max", vjp: extreme },
    Rule { op: "Min", vjp: extreme },
    Rule { op: "Relu", vjp: relu },
    Rule { op: "Where", vjp: select },
];

fn abs(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let sign = ctx.patch.node(Op::new("Sign"), &[x]);
    let grad = ctx.patch.mul(g, sign);
    ctx.only(0, grad)
}

/// The gradient where an input is what came out.
fn passed(ctx: &mut VjpContext<'_, '_>, x: ValueId, g: ValueId) -> (ValueId, ValueId) {
    let (y, zero) = (ctx.output(), ctx.patch.scalar_like(g, 0.0));
    let same = ctx.patch.equal(x, y);
    (same, ctx.patch.select(same, g, zero))
}

fn clip(ctx: &mut VjpContext<'_, '_>) -> Grads {
    if ctx.wants(1) || ctx.wants(2) {
        return Err(ctx.error("the bounds must not depend on what is trained"));
    }
    let (g, x) = (ctx.loose()?, ctx.input(0)?);
    let (_, grad) = passed(ctx, x, g);
    ctx.only(0, grad)
}

/// What the inputs so far did not take is left for the next; the last takes the rest.
fn extreme(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let mut left = ctx.loose()?;
    let count = ctx.node.inputs.len();
    let last_wanted = (0..count).rev().find(|slot| ctx.wants(*slot));
    let mut grads = vec![None; count];
    for (slot, grad) in grads.iter_mut().enumerate().take(last_wanted.unwrap_or_default() + 1) {
        if slot + 1 == count {
            *grad = Some(ctx.fit(left, slot)?);
            break;
        }
        let x = ctx.input(slot)?;
        let (y, zero) = (ctx.output(), ctx.patch.scalar_like(left, 0.0));
        let same = ctx.patch.equal(x, y);
        if ctx.wants(slot) {
            let taken = ctx.patch.select(same, left, zero);
            *grad = Some(ctx.fit(taken, slot)?);
        }
        if last_wanted.is_some_and(|last| last > slot) {
            left = ctx.patch.select(same, zero, left);
        }
    }
    Ok(grads)
}

fn relu(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, y) = (ctx.loose()?, ctx.output());
    let (none, zero) = (ctx.patch.scalar_like(y, 0.0), ctx.patch.scalar_like(g, 0.0));
    let open = ctx.patch.greater(y, none);
    let grad = ctx.patch.select(open, g, zero);
    ctx.only(0, grad)
}

fn select(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, condition) = (ctx.loose()?, ctx.input(0)?);
    let zero = ctx.patch.scalar_like(g, 0.0);
    let mut grads = vec![None; 3];
    if ctx.wants(1) {
        let grad = ctx.patch.select(condition, g, zero);
        grads[1] = Some(ctx.fit(grad, 1)?);
    }
    if ctx.wants(2) {
        let grad = ctx.patch.select(condition, zero, g);
        grads[2] = Some(ctx.fit(grad, 2)?);
    }
    Ok(grads)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradient_error, gradients_at};

    #[test]
    fn elements_go_one_way() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 3]
  input %b: f32[3]
  input %c: f32[2, 1]
  const %low: f32[] = [-0.5]
  const %high: f32[] = [0.5]
  const %zero: f32[] = [0.0]
  %a = Abs(%x)
  %r = Relu(%x)
  %l = Clip(%x, %low, %high)
  %m = Min(%low, %x, %b)
  %n = Max(%x, %b, %c, %low)
  %o = Max(%b, %c)
  %is = Greater(%x, %b)
  %w = Where(%is, %b, %c)
  %v = Where(%is, %x, %zero)
  output "a" %a
  output "r" %r
  output "l" %l
  output "m" %m
  output "n" %n
  output "o" %o
  output "w" %w
  output "v" %v
}"#,
        );
    }

    #[test]
    fn ties_go_to_the_first() {
        let grads = gradients_at(
            r#"graph "g" {
  input %x: f32[2]
  input %y: f32[2]
  %m = Max(%x, %y)
  %n = Min(%y, %x, %x)
  %o = Add(%m, %n)
  %s = ReduceSum(%o) {keepdims: 0}
  output "s" %s
}"#,
            &[("x", &[1.0, 2.0]), ("y", &[1.0, 0.0])],
        );
        assert_eq!(grads["x"], [1.0, 1.0]);
        assert_eq!(grads["y"], [1.0, 1.0]);
    }

    #[test]
    fn trained_bounds_are_refused() {
        insta::assert_snapshot!(gradient_error(
            r#"graph "g" {
  input %x: f32[2]
  input %low: f32[]
  %y = Clip(%x, %low) "clip"
  %s = ReduceSum(%y) {keepdims: 0}
  output "s" %s
}"#
        ));
    }
}
