//! Activations beyond the elementary functions, alone and fused with a bias.

use super::ROW;
use super::elementwise::zip;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::Type;
use crate::ir::op::{AttrSpec, OpSpec};
use ndarray::ArrayD;

const MICROSOFT: &str = "com.microsoft";

pub(super) const OPS: &[OpSpec] = &[
    OpSpec { attrs: &[("approximate", AttrSpec::Str("none"))], ..row("", "Gelu", eval_gelu) },
    row(MICROSOFT, "Gelu", |c| map(c, gelu)),
    OpSpec { inputs: 2..=2, ..row(MICROSOFT, "BiasGelu", |c| Ok(vec![Array::F(biased(c)?.mapv(gelu))])) },
    OpSpec {
        inputs: 1..=2,
        ..row(MICROSOFT, "FastGelu", |c| Ok(vec![Array::F(biased(c)?.mapv(tanh_gelu))]))
    },
    OpSpec {
        attrs: &[("alpha", AttrSpec::Float(1.702))],
        ..row(MICROSOFT, "QuickGelu", |c| with_alpha(c, |x, a| x / (1.0 + (-a * x).exp())))
    },
    OpSpec {
        attrs: &[("alpha", AttrSpec::Float(1.0))],
        ..row("", "Swish", |c| with_alpha(c, |x, a| x / (1.0 + (-a * x).exp())))
    },
    OpSpec {
        attrs: &[("alpha", AttrSpec::Float(1.0))],
        ..row("", "Elu", |c| with_alpha(c, |x, a| if x < 0.0 { a * x.exp_m1() } else { x }))
    },
    OpSpec {
        attrs: &[("alpha", AttrSpec::Float(0.01))],
        ..row("", "LeakyRelu", |c| with_alpha(c, |x, a| if x < 0.0 { a * x } else { x }))
    },
    OpSpec {
        attrs: &[("alpha", AttrSpec::Float(1.673_263_2)), ("gamma", AttrSpec::Float(1.050_701))],
        ..row("", "Selu", eval_selu)
    },
    OpSpec {
        attrs: &[("alpha", AttrSpec::Float(0.2)), ("beta", AttrSpec::Float(0.5))],
        ..row("", "HardSigmoid", eval_hard_sigmoid)
    },
    row("", "HardSwish", |c| map(c, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0))),
];

type EvalFn = fn(&EvalContext<'_>) -> Result<Vec<Array>, String>;

const fn row(domain: &'static str, name: &'static str, eval: EvalFn) -> OpSpec {
    OpSpec { domain, name, infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]), eval, ..ROW }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + statrs::function::erf::erf(x / std::f64::consts::SQRT_2))
}

fn tanh_gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

fn map(ctx: &EvalContext<'_>, f: fn(f64) -> f64) -> Result<Vec<Array>, String> {
    Ok(vec![Array::F(ctx.f(0)?.mapv(f))])
}

fn with_alpha(ctx: &EvalContext<'_>, f: fn(f64, f64) -> f64) -> Result<Vec<Array>, String> {
    let alpha = f64::from(ctx.op.float("alpha").unwrap_or_default());
    Ok(vec![Array::F(ctx.f(0)?.mapv(|x| f(x, alpha)))])
}

/// The first input, plus the second where it is given.
fn biased(ctx: &EvalContext<'_>) -> Result<ArrayD<f64>, String> {
    if ctx.has(1) { zip(ctx.f(0)?, ctx.f(1)?, |x, b| x + b) } else { Ok(ctx.f(0)?.clone()) }
}

fn eval_gelu(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    match ctx.op.str("approximate") {
        Some("none") => map(ctx, gelu),
        Some("tanh") => map(ctx, tanh_gelu),
        other => Err(format!("approximation {other:?} is not known")),
    }
}

fn eval_selu(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let get = |name: &str| f64::from(ctx.op.float(name).unwrap_or_default());
    let (alpha, gamma) = (get("alpha"), get("gamma"));
    let selu = |x: f64| gamma * if x > 0.0 { x } else { alpha * x.exp_m1() };
    Ok(vec![Array::F(ctx.f(0)?.mapv(selu))])
}

fn eval_hard_sigmoid(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let get = |name: &str| f64::from(ctx.op.float(name).unwrap_or_default());
    let (alpha, beta) = (get("alpha"), get("beta"));
    Ok(vec![Array::F(ctx.f(0)?.mapv(|x| (alpha * x + beta).clamp(0.0, 1.0)))])
}
