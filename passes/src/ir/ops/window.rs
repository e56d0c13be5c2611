//! Convolution and pooling: operators on windows of the axes after batch and channels.

use super::ROW;
use super::elementwise::same_dtype;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::{Dim, Shape, show};
use ndarray::{ArrayD, Dimension, IxDyn};

pub(super) const CONV_ATTRS: &[(&str, AttrSpec)] = &[
    ("auto_pad", AttrSpec::Str("NOTSET")),
    ("dilations", AttrSpec::Ints),
    ("group", AttrSpec::Int(1)),
    ("kernel_shape", AttrSpec::Ints),
    ("pads", AttrSpec::Ints),
    ("strides", AttrSpec::Ints),
];

pub(super) const OPS: &[OpSpec] = &[
    OpSpec { name: "Conv", inputs: 2..=3, attrs: CONV_ATTRS, infer: infer_conv, eval: eval_conv, ..ROW },
    OpSpec {
        name: "AveragePool",
        attrs: &[
            ("auto_pad", AttrSpec::Str("NOTSET")),
            ("ceil_mode", AttrSpec::Int(0)),
            ("count_include_pad", AttrSpec::Int(0)),
            ("dilations", AttrSpec::Ints),
            ("kernel_shape", AttrSpec::RequiredInts),
            ("pads", AttrSpec::Ints),
            ("strides", AttrSpec::Ints),
        ],
        infer: infer_pool,
        eval: eval_average_pool,
        ..ROW
    },
    OpSpec {
        name: "MaxPool",
        outputs: 1..=2,
        attrs: &[
            ("auto_pad", AttrSpec::Str("NOTSET")),
            ("ceil_mode", AttrSpec::Int(0)),
            ("dilations", AttrSpec::Ints),
            ("kernel_shape", AttrSpec::RequiredInts),
            ("pads", AttrSpec::Ints),
            ("storage_order", AttrSpec::Int(0)),
            ("strides", AttrSpec::Ints),
        ],
        infer: infer_pool,
        eval: eval_max_pool,
        ..ROW
    },
    OpSpec {
        name: "GlobalAveragePool",
        infer: infer_global,
        eval: |c| global(c, |values| values.iter().sum::<f64>() / values.len() as f64),
        ..ROW
    },
    OpSpec {
        name: "GlobalMaxPool",
        infer: infer_global,
        eval: |c| global(c, |values| values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        ..ROW
    },
];

/// How a window moves along one axis.
#[derive(Clone, Copy)]
struct WindowStep {
    kernel: u64,
    stride: u64,
    dilation: u64,
    pad: Pad,
    ceil: bool,
}

#[derive(Clone, Copy)]
enum Pad {
    Given(u64, u64),
    /// As much as makes the output `size / stride`, rounded up; an odd one at the end or the beginning.
    Same {
        end: bool,
    },
}

impl WindowStep {
    /// What the window covers.
    fn extent(self) -> Option<u64> {
        self.dilation.checked_mul(self.kernel.checked_sub(1)?)?.checked_add(1)
    }

    fn out(self, size: u64) -> Option<u64> {
        let Pad::Given(begin, end) = self.pad else { return Some(size.div_ceil(self.stride)) };
        let room = size.checked_add(begin)?.checked_add(end)?.checked_sub(self.extent()?)?;
        if !self.ceil {
            return Some(room / self.stride + 1);
        }
        // A window that would begin in the padding at the end is left out.
        let windows = room.div_ceil(self.stride) + 1;
        let begins_inside = (windows - 1).checked_mul(self.stride)? < size.checked_add(begin)?;
        Some(if begins_inside { windows } else { windows - 1 })
    }

    fn out_dim(self, size: &Dim) -> Dim {
        match (size, self.pad) {
            (Dim::Known(n), _) => self.out(*n).map_or(Dim::Unknown, Dim::Known),
            (size, Pad::Same { .. }) if self.stride == 1 => size.clone(),
            (size, Pad::Given(begin, end)) if !self.ceil => {
                let padding = begin.checked_add(end).zip(self.extent());
                padding.map_or(Dim::Unknown, |(padding, extent)| self.windows(size, padding, extent))
            }
            _ => Dim::Unknown,
        }
    }

    /// How many windows of a size with padding there are.
    fn windows(self, size: &Dim, padding: u64, extent: u64) -> Dim {
        match (padding + 1).checked_sub(extent) {
            Some(more) if self.stride == 1 => size.plus(&Dim::Known(more)),
            _ => size.windows(extent, self.stride, padding),
        }
    }

    fn begin(self, size: u64) -> Option<u64> {
        match self.pad {
            Pad::Given(begin, _) => Some(begin),
            Pad::Same { end } => {
                let last = (size.div_ceil(self.stride).saturating_sub(1)).checked_mul(self.stride)?;
                let all = last.checked_add(self.extent()?)?.saturating_sub(size);
                Some(if end { all / 2 } else { all.div_ceil(2) })
            }
        }
    }
}

/// One step for each axis of the kernel.
fn steps(op: &Op, kernel: &[u64]) -> Result<Vec<WindowStep>, String> {
    let rank = kernel.len();
    let list = |name: &str, count: usize, default: u64| -> Result<Vec<u64>, String> {
        let Some(found) = op.ints(name) else { return Ok(vec![default; count]) };
        let numbers: Option<Vec<u64>> = found.iter().map(|n| u64::try_from(*n).ok()).collect();
        let fits = |n: &Vec<u64>| n.len() == count && n.iter().all(|n| *n >= default);
        numbers
            .filter(fits)
            .ok_or_else(|| format!("`{name}` is {found:?}, expected {count} of at least {default}"))
    };
    let (strides, dilations, pads) =
        (list("strides", rank, 1)?, list("dilations", rank, 1)?, list("pads", 2 * rank, 0)?);
    let pad = |axis: usize| match op.str("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => Ok(Pad::Given(pads[axis], pads[rank + axis])),
        "VALID" => Ok(Pad::Given(0, 0)),
        "SAME_UPPER" => Ok(Pad::Same { end: true }),
        "SAME_LOWER" => Ok(Pad::Same { end: false }),
        other => Err(format!("auto_pad {other:?} is not known")),
    };
    let step = |axis: usize| {
        let (kernel, stride, dilation) = (kernel[axis], strides[axis], dilations[axis]);
        Ok(WindowStep { kernel, stride, dilation, pad: pad(axis)?, ceil: op.int("ceil_mode") == Some(1) })
    };
    (0..rank).map(step).collect()
}

fn kernel_of(op: &Op) -> Result<Vec<u64>, String> {
    let found = op.ints("kernel_shape").unwrap_or_default();
    let sizes: Option<Vec<u64>> = found.iter().map(|n| u64::try_from(*n).ok().filter(|n| *n > 0)).collect();
    sizes.ok_or_else(|| format!("`kernel_shape` is {found:?}, expected positive numbers"))
}

/// After batch and channels, one axis for each of the kernel.
fn check_rank(shape: &[Dim], kernel: usize) -> Result<(), String> {
    if shape.len() == kernel + 2 && kernel > 0 {
        return Ok(());
    }
    Err(format!("a window of {kernel} axes does not fit {}", show(shape)))
}

fn infer_conv(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = same_dtype(ctx, 0..ctx.inputs.len())?;
    Ok(vec![Type::maybe(dtype, conv_shape(ctx)?)])
}

/// The shape of a convolution of inputs 0 and 1.
pub(super) fn conv_shape(ctx: &InferContext<'_>) -> Result<Option<Shape>, String> {
    let Some((x, weight)) = ctx.shape(0).zip(ctx.shape(1)) else { return Ok(None) };
    check_rank(x, weight.len().saturating_sub(2))?;
    let group = Dim::Known(groups(ctx.op)?);
    if !x[1].agrees(&weight[1].times(&group)) {
        return Err(format!("{} and a kernel {} in {group} groups do not fit", show(x), show(weight)));
    }
    let kernel: Option<Vec<u64>> = weight[2..].iter().map(Dim::known).collect();
    let spatial = match kernel {
        Some(kernel) => spatial(&x[2..], &steps(ctx.op, &kernel)?),
        None => vec![Dim::Unknown; x.len() - 2],
    };
    Ok(Some([x[0].clone(), weight[0].clone()].into_iter().chain(spatial).collect()))
}

fn spatial(sizes: &[Dim], steps: &[WindowStep]) -> Shape {
    sizes.iter().zip(steps).map(|(size, step)| step.out_dim(size)).collect()
}

fn groups(op: &Op) -> Result<u64, String> {
    let group = op.int("group").unwrap_or(1);
    u64::try_from(group)
        .ok()
        .filter(|g| *g > 0)
        .ok_or_else(|| format!("`group` is {group}, expected 1 or more"))
}

fn infer_pool(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(x) = ctx.shape(0) else { return Ok(vec![Type::maybe(ctx.dtype(0), None)]) };
    let kernel = kernel_of(ctx.op)?;
    check_rank(x, kernel.len())?;
    let sizes = spatial(&x[2..], &steps(ctx.op, &kernel)?);
    let shape: Shape = x[..2].iter().cloned().chain(sizes).collect();
    Ok(vec![Type::maybe(ctx.dtype(0), Some(shape))])
}

fn infer_global(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let Some(x) = ctx.shape(0) else { return Ok(vec![Type::maybe(ctx.dtype(0), None)]) };
    check_rank(x, x.len().saturating_sub(2))?;
    let ones = x[2..].iter().map(|_| Dim::Known(1));
    Ok(vec![Type::maybe(ctx.dtype(0), Some(x[..2].iter().cloned().chain(ones).collect()))])
}

/// The windows over an array `[batch, channels, …]`.
struct Windows<'a> {
    x: &'a ArrayD<f64>,
    steps: Vec<WindowStep>,
    begin: Vec<u64>,
    kernel: Vec<usize>,
    out: Vec<usize>,
}

impl<'a> Windows<'a> {
    fn new(op: &Op, x: &'a ArrayD<f64>, kernel: &[u64]) -> Result<Self, String> {
        if x.ndim() != kernel.len() + 2 {
            return Err(format!("a window of {} axes does not fit {:?}", kernel.len(), x.shape()));
        }
        let steps = steps(op, kernel)?;
        let each = |f: fn(WindowStep, u64) -> Option<u64>| -> Option<Vec<u64>> {
            steps.iter().zip(&x.shape()[2..]).map(|(step, size)| f(*step, *size as u64)).collect()
        };
        let fail = || format!("a window of {kernel:?} does not fit {:?}", x.shape());
        let out = each(WindowStep::out).ok_or_else(fail)?.into_iter().map(|n| n as usize).collect();
        let begin = each(WindowStep::begin).ok_or_else(fail)?;
        Ok(Self { x, begin, kernel: kernel.iter().map(|n| *n as usize).collect(), out, steps })
    }

    /// The element that a place of the kernel falls on, or `None` in the padding.
    fn at(&self, batch: usize, channel: usize, out: &[usize], kernel: &[usize]) -> Option<f64> {
        let mut place = vec![batch, channel];
        for (axis, step) in self.steps.iter().enumerate() {
            let at = out[axis] as u64 * step.stride + kernel[axis] as u64 * step.dilation;
            place.push(usize::try_from(at.checked_sub(self.begin[axis])?).ok()?);
        }
        self.x.get(IxDyn(&place)).copied()
    }

    /// Places of the kernel, in order.
    fn places(&self) -> impl Iterator<Item = IxDyn> + use<> {
        ndarray::indices(IxDyn(&self.kernel)).into_iter()
    }

    fn each(&self, channels: usize, f: impl Fn(usize, usize, &[usize]) -> f64) -> ArrayD<f64> {
        let shape = [&[self.x.shape()[0], channels], self.out.as_slice()].concat();
        ArrayD::from_shape_fn(IxDyn(&shape), |at| {
            let at = at.slice();
            f(at[0], at[1], &at[2..])
        })
    }
}

fn eval_conv(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let bias = if ctx.has(2) { Some(ctx.f(2)?) } else { None };
    Ok(vec![Array::F(conv(ctx.op, ctx.f(0)?, ctx.f(1)?, bias)?)])
}

pub(super) fn conv(
    op: &Op,
    x: &ArrayD<f64>,
    weight: &ArrayD<f64>,
    bias: Option<&ArrayD<f64>>,
) -> Result<ArrayD<f64>, String> {
    let group = groups(op)? as usize;
    let kernel: Vec<u64> = weight.shape().iter().skip(2).map(|n| *n as u64).collect();
    let windows = Windows::new(op, x, &kernel)?;
    let (channels, taken) = (weight.shape()[0], weight.shape()[1]);
    let fits = x.shape()[1] == taken * group && channels % group == 0;
    if !fits || bias.is_some_and(|b| b.shape() != [channels]) {
        return Err(format!("{:?} and {:?} in {group} groups do not fit", x.shape(), weight.shape()));
    }
    let places: Vec<IxDyn> = windows.places().collect();
    let result = windows.each(channels, |batch, channel, out| {
        let first = channel / (channels / group) * taken;
        let mut sum = bias.map_or(0.0, |b| b[channel]);
        for own in 0..taken {
            for place in &places {
                let Some(value) = windows.at(batch, first + own, out, place.slice()) else { continue };
                let factor = [&[channel, own], place.slice()].concat();
                sum += value * weight[IxDyn(&factor)];
            }
        }
        sum
    });
    Ok(result)
}

fn eval_max_pool(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.outputs > 1 {
        return Err("the places of the maxima are not computed here".to_owned());
    }
    let x = ctx.f(0)?;
    let windows = Windows::new(ctx.op, x, &kernel_of(ctx.op)?)?;
    let places: Vec<IxDyn> = windows.places().collect();
    let result = windows.each(x.shape()[1], |batch, channel, out| {
        let seen = places.iter().filter_map(|p| windows.at(batch, channel, out, p.slice()));
        seen.fold(f64::NEG_INFINITY, f64::max)
    });
    Ok(vec![Array::F(result)])
}

fn eval_average_pool(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let windows = Windows::new(ctx.op, x, &kernel_of(ctx.op)?)?;
    let padded = ctx.op.int("count_include_pad") == Some(1);
    if padded && ctx.op.int("ceil_mode") == Some(1) {
        return Err("padding is counted only where sizes are rounded down".to_owned());
    }
    let places: Vec<IxDyn> = windows.places().collect();
    let result = windows.each(x.shape()[1], |batch, channel, out| {
        let seen: Vec<f64> =
            places.iter().filter_map(|p| windows.at(batch, channel, out, p.slice())).collect();
        seen.iter().sum::<f64>() / if padded { places.len() } else { seen.len() } as f64
    });
    Ok(vec![Array::F(result)])
}

/// One number for each channel.
fn global(ctx: &EvalContext<'_>, f: impl Fn(&[f64]) -> f64) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    if x.ndim() < 3 || x.is_empty() {
        return Err(format!("{:?} has nothing to pool", x.shape()));
    }
    let mut shape = x.shape().to_vec();
    let size: usize = shape.drain(2..).product();
    shape.resize(x.ndim(), 1);
    let flat: Vec<f64> = x.iter().copied().collect();
    let pooled = flat.chunks(size).map(f).collect();
    Ok(vec![Array::from_f64(&shape, pooled)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::eval::eval;
    use crate::ir::graph::Graph;
    use crate::ir::text::parse;
    use std::collections::BTreeMap;

    fn graph(line: &str) -> Graph {
        let text = format!(
            r#"graph "g" {{
  input %x: f32[batch, 2, 4]
  const %w: f32[2, 1, 2] = [1.0, 2.0, 10.0, 20.0]
  const %b: f32[2] = [0.5, 0.25]
  {line}
  output "y" %y
}}"#
        );
        parse(&text).expect("it parses")
    }

    /// What a line makes of the channels 1 2 3 4 and 5 6 7 8; its shape is what was inferred.
    fn y(line: &str) -> Vec<f64> {
        let graph = graph(line);
        let x = Array::from_f64(&[1, 2, 4], (1..=8).map(f64::from).collect()).expect("8 numbers");
        let y = eval(&graph, &BTreeMap::from([(graph.inputs()[0], x)]), &[graph.outputs()[0].1]);
        let y = y.expect("it runs").swap_remove(0);
        let inferred = graph.value(graph.outputs()[0].1).ty.shape.clone().expect("a shape");
        let found: Shape = y.shape().iter().map(|n| Dim::Known(*n as u64)).collect();
        assert_eq!(found[1..], inferred[1..]);
        y.to_f64()
    }

    /// Worked out by hand.
    #[test]
    fn convolutions_in_groups() {
        let plain = "%y = Conv(%x, %w, %b) {group: 2}";
        assert_eq!(y(plain), [5.5, 8.5, 11.5, 170.25, 200.25, 230.25]);
        let wide = "%y = Conv(%x, %w) {group: 2, dilations: [2], pads: [1, 0], strides: [2]}";
        assert_eq!(y(wide), [4.0, 10.0, 120.0, 220.0]);
        let same = "%y = Conv(%x, %w) {group: 2, auto_pad: \"SAME_UPPER\"}";
        assert_eq!(y(same), [5.0, 8.0, 11.0, 4.0, 170.0, 200.0, 230.0, 80.0]);
        let lower = "%y = Conv(%x, %w) {group: 2, auto_pad: \"SAME_LOWER\"}";
        assert_eq!(y(lower), [2.0, 5.0, 8.0, 11.0, 100.0, 170.0, 200.0, 230.0]);
    }

    #[test]
    fn pools() {
        assert_eq!(y("%y = MaxPool(%x) {kernel_shape: [3], strides: [2]}"), [3.0, 7.0]);
        assert_eq!(
            y("%y = MaxPool(%x) {ceil_mode: 1, kernel_shape: [3], strides: [2]}"),
            [3.0, 4.0, 7.0, 8.0]
        );
        let average = "%y = AveragePool(%x) {kernel_shape: [2], pads: [1, 1], strides: [2]}";
        assert_eq!(y(average), [1.0, 2.5, 4.0, 5.0, 6.5, 8.0]);
        let counted = average.replace("kernel", "count_include_pad: 1, kernel");
        assert_eq!(y(&counted), [0.5, 2.5, 2.0, 2.5, 6.5, 4.0]);
        assert_eq!(y("%y = GlobalAveragePool(%x)"), [2.5, 6.5]);
        assert_eq!(y("%y = GlobalMaxPool(%x)"), [4.0, 8.0]);
    }

    #[test]
    fn a_size_that_stays_keeps_its_name() {
        let sizes = |attributes: &str| {
            let text = format!(
                r#"graph "g" {{
  input %x: f32[batch, 1, width]
  const %w: f32[2, 1, 3] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
  %y = Conv(%x, %w) {{{attributes}}}
  output "y" %y
}}"#
            );
            let graph = parse(&text).expect("it parses");
            show(graph.value(graph.outputs()[0].1).ty.shape.as_deref().expect("a shape"))
        };
        assert_eq!(sizes("pads: [1, 1]"), "[batch, 2, width]");
        assert_eq!(sizes("auto_pad: \"SAME_UPPER\""), "[batch, 2, width]");
        assert_eq!(sizes("pads: [2, 1]"), "[batch, 2, 1 + width]");
        assert_eq!(sizes("pads: [1, 0]"), "[batch, 2, windows of 3 every 1 in 1 more than width]");
        assert_eq!(
            sizes("pads: [1, 1], strides: [2]"),
            "[batch, 2, windows of 3 every 2 in 2 more than width]"
        );
    }
}
