//! `Add`, `Sub`, `Mul`, `Div`, `Neg`.

use super::{Grads, Rule, VjpContext};
use crate::ir::graph::ValueId;

pub(super) const RULES: &[Rule] = &[
    Rule { op: "Add", vjp: add },
    Rule { op: "Sub", vjp: sub },
    Rule { op: "Mul", vjp: mul },
    Rule { op: "Div", vjp: div },
    Rule { op: "Neg", vjp: neg },
];

fn add(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.loose()?;
    let mut grads = vec![None, None];
    for (slot, grad) in grads.iter_mut().enumerate() {
        if ctx.wants(slot) {
            *grad = Some(ctx.fit(g, slot)?);
        }
    }
    Ok(grads)
}

fn sub(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let mut grads = add(ctx)?;
    grads[1] = grads[1].map(|g| ctx.patch.neg(g));
    Ok(grads)
}

fn mul(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, a, b) = (ctx.loose()?, ctx.input(0)?, ctx.input(1)?);
    if a == b {
        let twice = ctx.patch.mul_scalar(g, 2.0);
        let grad = ctx.patch.mul(twice, a);
        return ctx.only(0, grad);
    }
    if let Some(slot) = gated(ctx, a, b) {
        return self_gated(ctx, slot);
    }
    let mut grads = vec![None, None];
    for (slot, other) in [b, a].into_iter().enumerate() {
        if ctx.wants(slot) {
            let product = ctx.patch.mul(g, other);
            grads[slot] = Some(ctx.fit(product, slot)?);
        }
    }
    Ok(grads)
}

/// The slot of x in x · σ(x).
fn gated(ctx: &VjpContext<'_, '_>, a: ValueId, b: ValueId) -> Option<usize> {
    [(a, b), (b, a)].into_iter().position(|(x, gate)| {
        let made = ctx.patch.producer(gate).filter(|n| n.op.is("Sigmoid"));
        made.is_some_and(|n| n.input(0) == Some(x))
    })
}

/// With y = x s, s = σ(x): dx = g (s + y - y s), by both ways, so that nothing is left for σ.
fn self_gated(ctx: &mut VjpContext<'_, '_>, slot: usize) -> Grads {
    let (g, s, y) = (ctx.loose()?, ctx.input(1 - slot)?, ctx.output());
    let p = &mut *ctx.patch;
    let both = p.mul(y, s);
    let rest = p.sub(y, both);
    let slope = p.add(s, rest);
    let grad = p.mul(g, slope);
    ctx.only(slot, grad)
}

/// With y = a / b: da = g / b, db = -y g / b.
fn div(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (g, b, y) = (ctx.loose()?, ctx.input(1)?, ctx.output());
    let quotient = ctx.patch.div(g, b);
    let mut grads = vec![None, None];
    if ctx.wants(0) {
        grads[0] = Some(ctx.fit(quotient, 0)?);
    }
    if ctx.wants(1) {
        let product = ctx.patch.mul(quotient, y);
        let sum = ctx.fit(product, 1)?;
        grads[1] = Some(ctx.patch.neg(sum));
    }
    Ok(grads)
}

fn neg(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let g = ctx.loose()?;
    let grad = ctx.patch.neg(g);
    ctx.only(0, grad)
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{gradcheck, gradient_error};

    #[test]
    fn both_sides_of_every_broadcast() {
        for op in ["Add", "Sub", "Mul", "Div"] {
            for (a, b) in [("[2, 3]", "[2, 3]"), ("[2, 3]", "[3]"), ("[3, 1]", "[2, 1, 4]"), ("[]", "[1, 2]")]
            {
                gradcheck(&format!(
                    r#"graph "g" {{
  input %a: f32{a}
  input %positive: f32{b}
  %y = {op}(%a, %positive)
  %z = {op}(%y, %positive)
  output "z" %z
}}"#
                ));
            }
        }
    }

    #[test]
    fn named_dims_and_a_tied_weight() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: f32[4] = random(1)
  %a = Mul(%x, %w)
  %b = Mul(%a, %a)
  %n = Neg(%b)
  %c = Sub(%w, %n)
  output "c" %c
}"#,
        );
    }

    #[test]
    fn a_sum_is_broadcast_where_a_factor_needs_it() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[2, 3]
  input %row: f32[3]
  input %column: f32[2, 1]
  %p = Mul(%column, %row)
  %q = Add(%p, %x)
  %r = Add(%q, %row)
  %s = ReduceSum(%r) {keepdims: 0}
  output "s" %s
}"#,
        );
    }

    #[test]
    fn a_value_that_gates_itself() {
        let checked = |last: &str| {
            gradcheck(&format!(
                r#"graph "g" {{
  input %x: f32[2, 3]
  input %other: f32[2, 3]
  %s = Sigmoid(%x)
  {last}
  output "y" %y
}}"#
            ));
        };
        checked("%y = Mul(%x, %s)");
        checked("%y = Mul(%s, %x)");
        // The gate is read elsewhere too, or is another's.
        checked("%z = Mul(%x, %s)\n  %y = Mul(%z, %s)");
        checked("%y = Mul(%other, %s)");
    }

    #[test]
    fn dims_of_other_names_are_not_guessed() {
        insta::assert_snapshot!(gradient_error(
            r#"graph "g" {
  input %x: f32[a, 4]
  input %y: f32[b, 4]
  %z = Add(%x, %y) "sum"
  %s = ReduceSum(%z) {keepdims: 0}
  output "s" %s
}"#
        ));
    }
}
