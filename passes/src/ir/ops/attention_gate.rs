//! `LinearAttentionGate` of `com.microsoft`: what `LinearAttention` reads of two products,
//! decay = decay_scale · softplus(a + dt_bias) and beta = sigmoid(b), `[batch, sequence, heads]` each.

use super::ROW;
use super::elementwise::zip;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::Type;
use crate::ir::op::OpSpec;

pub(super) const OPS: &[OpSpec] = &[OpSpec {
    domain: "com.microsoft",
    name: "LinearAttentionGate",
    inputs: 3..=4,
    outputs: 1..=2,
    infer: |c| {
        let decay = Type::maybe(c.dtype(0), c.shape(0).cloned());
        let beta = Type::maybe(c.dtype(3), c.shape(3).cloned());
        Ok(vec![decay, beta])
    },
    eval,
    ..ROW
}];

fn eval(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    // Exact where exp(x) is not a number of f64 any more.
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let shifted = zip(ctx.f(0)?, ctx.f(1)?, |a, bias| a + bias)?;
    let mut outputs = vec![Array::F(zip(&shifted.mapv(softplus), ctx.f(2)?, |a, scale| a * scale)?)];
    if ctx.has(3) {
        outputs.push(Array::F(ctx.f(3)?.mapv(|b| 1.0 / (1.0 + (-b).exp()))));
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use crate::ir::eval::Array;
    use crate::ir::text::parse;
    use crate::testing::run;
    use ndarray::{ArrayD, IxDyn};

    /// softplus(0) = ln 2, softplus(0 + ln 3) = ln 4; sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4.
    #[test]
    fn numbers_written_out() {
        let graph = parse(
            r#"graph "g" {
  input %a: f32[1, 1, 2]
  input %b: f32[1, 1, 2]
  const %bias: f32[2] = [0.0, 1.0986123]
  const %scale: f32[2] = [-1.0, -2.0]
  %decay, %beta = com.microsoft.LinearAttentionGate(%a, %bias, %scale, %b)
  output "decay" %decay
  output "beta" %beta
}"#,
        )
        .expect("a graph");
        let of = |values: Vec<f64>| {
            Array::F(ArrayD::from_shape_vec(IxDyn(&[1, 1, 2]), values).expect("two heads"))
        };
        let found = run(&graph, &[("a", of(vec![0.0, 0.0])), ("b", of(vec![0.0, 3f64.ln()]))]);
        for (name, expected) in [("decay", [-(2f64.ln()), -2.0 * 4f64.ln()]), ("beta", [0.5, 0.75])] {
            let Array::F(found) = &found[name] else { panic!("{name} is of whole numbers") };
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-7, "{name}: {found} {expected}");
            }
        }
    }
}
