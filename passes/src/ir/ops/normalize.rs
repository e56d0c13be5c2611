//! Softmax, and the norms of one input.

use super::ROW;
use super::elementwise::zip;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, resolve_axis};
use crate::ir::op::{AttrSpec, OpSpec};
use ndarray::{ArrayD, Axis};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "Softmax",
        attrs: &[("axis", AttrSpec::Int(-1))],
        infer: infer_along_axis,
        eval: eval_softmax,
        ..ROW
    },
    OpSpec {
        name: "LogSoftmax",
        attrs: &[("axis", AttrSpec::Int(-1))],
        infer: infer_along_axis,
        eval: eval_log_softmax,
        ..ROW
    },
    OpSpec {
        name: "LayerNormalization",
        inputs: 2..=3,
        attrs: &[
            ("axis", AttrSpec::Int(-1)),
            ("epsilon", AttrSpec::Float(1e-5)),
            ("stash_type", AttrSpec::Int(1)),
        ],
        infer: infer_along_axis,
        eval: eval_layer_norm,
        ..ROW
    },
    OpSpec {
        name: "BatchNormalization",
        inputs: 5..=5,
        outputs: 1..=5,
        attrs: &[
            ("epsilon", AttrSpec::Float(1e-5)),
            ("momentum", AttrSpec::Float(0.9)),
            ("training_mode", AttrSpec::Int(0)),
        ],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_batch_norm,
        ..ROW
    },
    OpSpec {
        name: "InstanceNormalization",
        inputs: 3..=3,
        attrs: &[("epsilon", AttrSpec::Float(1e-5))],
        infer: |c| Ok(vec![Type::maybe(c.dtype(0), c.shape(0).cloned())]),
        eval: eval_instance_norm,
        ..ROW
    },
];

/// The type of the input, which must have the axis.
fn infer_along_axis(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    if let (Some(axis), Some(shape)) = (ctx.op.int("axis"), ctx.shape(0)) {
        resolve_axis(axis, shape.len())?;
    }
    Ok(vec![Type::maybe(ctx.dtype(0), ctx.shape(0).cloned())])
}

/// The softmax of every lane along an axis.
pub(super) fn softmax(x: &ArrayD<f64>, axis: usize) -> ArrayD<f64> {
    let mut out = x.clone();
    for mut lane in out.lanes_mut(Axis(axis)) {
        let max = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        lane.mapv_inplace(|x| (x - max).exp());
        let sum = lane.sum();
        lane.mapv_inplace(|x| x / sum);
    }
    out
}

fn eval_softmax(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let axis = resolve_axis(ctx.int_attr("axis")?, x.ndim())?;
    Ok(vec![Array::F(softmax(x, axis))])
}

fn eval_log_softmax(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let mut out = ctx.f(0)?.clone();
    let axis = resolve_axis(ctx.int_attr("axis")?, out.ndim())?;
    for mut lane in out.lanes_mut(Axis(axis)) {
        let max = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = lane.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max;
        lane.mapv_inplace(|x| x - log_sum);
    }
    Ok(vec![Array::F(out)])
}

/// Divides by the root mean square over the axes from `first` on.
pub(super) fn rms_norm(
    x: &ArrayD<f64>,
    first: usize,
    weight: &ArrayD<f64>,
    epsilon: f64,
) -> Result<ArrayD<f64>, String> {
    let mut mean = x.mapv(|x| x * x);
    for axis in (first..x.ndim()).rev() {
        mean = mean.mean_axis(Axis(axis)).ok_or("an empty axis has no mean")?.insert_axis(Axis(axis));
    }
    let normal = zip(x, &mean, |x, m| x / (m + epsilon).sqrt())?;
    zip(&normal, weight, |x, w| x * w)
}

/// Layer norm over the last axis.
pub(super) fn layer_norm(
    x: &ArrayD<f64>,
    weight: &ArrayD<f64>,
    bias: Option<&ArrayD<f64>>,
    epsilon: f64,
) -> Result<ArrayD<f64>, String> {
    let mut out = x.clone();
    let last = x.ndim().checked_sub(1).ok_or("a scalar has no axis")?;
    for mut lane in out.lanes_mut(Axis(last)) {
        let n = lane.len() as f64;
        let mean = lane.sum() / n;
        let variance = lane.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let scale = (variance + epsilon).sqrt().recip();
        lane.mapv_inplace(|x| (x - mean) * scale);
    }
    out = zip(&out, weight, |x, w| x * w)?;
    match bias {
        Some(bias) => zip(&out, bias, |x, b| x + b),
        None => Ok(out),
    }
}

fn eval_layer_norm(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let first = resolve_axis(ctx.int_attr("axis")?, x.ndim())?;
    if first + 1 != x.ndim() {
        return Err("only the last axis is normalised here".to_owned());
    }
    let epsilon = f64::from(ctx.op.float("epsilon").unwrap_or(1e-5));
    let bias = if ctx.has(2) { Some(ctx.f(2)?) } else { None };
    Ok(vec![Array::F(layer_norm(x, ctx.f(1)?, bias, epsilon)?)])
}

/// With the mean and variance that the model keeps for each channel.
fn eval_batch_norm(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.outputs > 1 || ctx.int_attr("training_mode")? != 0 {
        return Err("the mean and variance of a batch are not computed here".to_owned());
    }
    let mut out = ctx.f(0)?.clone();
    let [scale, bias, mean, variance] = [ctx.f(1)?, ctx.f(2)?, ctx.f(3)?, ctx.f(4)?];
    let channels = if out.ndim() > 1 { out.shape()[1] } else { 1 };
    if [scale, bias, mean, variance].iter().any(|x| x.shape() != [channels]) {
        return Err(format!("{:?} has {channels} channels, and its statistics do not", out.shape()));
    }
    let epsilon = f64::from(ctx.op.float("epsilon").unwrap_or(1e-5));
    for (at, x) in out.indexed_iter_mut() {
        let c = if channels == 1 { 0 } else { at[1] };
        *x = (*x - mean[c]) / (variance[c] + epsilon).sqrt() * scale[c] + bias[c];
    }
    Ok(vec![Array::F(out)])
}

/// With the mean and variance of each channel of each of the batch, `[batch, channels, ..]`.
fn eval_instance_norm(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?.as_standard_layout().into_owned();
    let [scale, bias] = [ctx.f(1)?, ctx.f(2)?];
    let shape = x.shape().to_vec();
    let &[_, channels, ref rest @ ..] = shape.as_slice() else {
        return Err(format!("{shape:?} has no channels"));
    };
    if [scale, bias].iter().any(|x| x.shape() != [channels]) {
        return Err(format!("{shape:?} has {channels} channels, and its scale or bias does not"));
    }
    let epsilon = f64::from(ctx.op.float("epsilon").unwrap_or(1e-5));
    let each = rest.iter().product::<usize>().max(1);
    let mut numbers: Vec<f64> = x.into_iter().collect();
    for (at, of_channel) in numbers.chunks_mut(each).enumerate() {
        let (c, n) = (at % channels, of_channel.len() as f64);
        let mean = of_channel.iter().sum::<f64>() / n;
        let variance = of_channel.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        of_channel
            .iter_mut()
            .for_each(|x| *x = (*x - mean) / (variance + epsilon).sqrt() * scale[c] + bias[c]);
    }
    Ok(vec![Array::from_f64(&shape, numbers)?])
}

#[cfg(test)]
mod tests {
    use crate::ir::eval::Array;
    use crate::ir::text::parse;
    use crate::testing::run;

    /// Of two channels of three numbers.
    #[test]
    fn a_channel_is_normalised_by_itself() {
        let text = r#"graph "g" {
  input %x: f32[batch, 2, 3]
  const %scale: f32[2] = [2.0, 1.0]
  const %bias: f32[2] = [0.0, 5.0]
  %y = InstanceNormalization(%x, %scale, %bias) {epsilon: 0.0}
  output "y" %y
}"#;
        let graph = parse(text).expect("it parses");
        let x = Array::from_f64(&[1, 2, 3], vec![1.0, 2.0, 3.0, 4.0, 4.0, 10.0]).expect("6 numbers");
        let y = run(&graph, &[("x", x)])["y"].to_f64();
        let (end, middle) = (1.5f64.sqrt(), 0.5f64.sqrt());
        let want = [-2.0 * end, 0.0, 2.0 * end, 5.0 - middle, 5.0 - middle, 5.0 + 2.0 * middle];
        assert!(y.iter().zip(want).all(|(y, want)| (y - want).abs() < 1e-12), "{y:?}");
    }
}
