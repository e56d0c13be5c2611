//! `Slice` and `Pad`, each the other's gradient.

use super::{AutodiffError, Grads, Rule, VjpContext};
use crate::autodiff::number::Number;
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::{Dim, Shape};
use dijiang_format::dtype::DType;

pub(super) const RULES: &[Rule] = &[Rule { op: "Pad", vjp: pad }, Rule { op: "Slice", vjp: slice }];

/// One sliced axis.
struct Cut {
    axis: usize,
    start: Number,
    step: i64,
}

fn cuts(ctx: &mut VjpContext<'_, '_>, rank: usize) -> Result<Vec<Cut>, AutodiffError> {
    let starts = ctx.input(1)?;
    let count = match ctx.shape(starts)?.as_slice() {
        [Dim::Known(n)] => *n as usize,
        _ => return Err(ctx.error("the number of sliced axes is not known")),
    };
    let given = |slot: usize| match (ctx.node.input(slot), ctx.const_ints(slot)) {
        (None, _) => Ok(None),
        (Some(_), Some(ints)) if ints.len() == count => Ok(Some(ints)),
        _ => Err(ctx.error("axes and steps must be constants")),
    };
    let axes = given(3)?.unwrap_or_else(|| (0..count as i64).collect());
    let steps = given(4)?.unwrap_or_else(|| vec![1; count]);
    let mut cuts = Vec::with_capacity(count);
    for (i, (axis, step)) in axes.into_iter().zip(steps).enumerate() {
        if step < 1 {
            return Err(ctx.error(&format!("a step of {step} has no gradient here, only positive ones")));
        }
        cuts.push(Cut { axis: ctx.resolve(axis, rank)?, start: ctx.element(starts, i), step });
    }
    Ok(cuts)
}

fn slice(ctx: &mut VjpContext<'_, '_>) -> Grads {
    let (mut g, x, y) = (ctx.grad()?, ctx.input(0)?, ctx.output());
    let mut shape = ctx.shape(y)?;
    let rank = shape.len();
    let mut pads = vec![Number::Known(0); 2 * rank];
    for cut in cuts(ctx, rank)? {
        let (dim, mut len) = (ctx.dim(x, cut.axis), ctx.dim(y, cut.axis));
        if cut.step > 1 {
            let Number::Known(n) = len else {
                return Err(ctx.error("an axis with a step must have a known length"));
            };
            g = dilate(ctx, g, &mut shape, &cut, n);
            len = Number::Known(((n - 1) * cut.step + 1).max(0));
        }
        let start = ctx.counted_from_front(cut.start, dim);
        // A start at 0 needs no bounds, and one within a known dim is bounded here.
        let start = if start == Number::Known(0) { start } else { within(ctx, start, dim) };
        let after = ctx.minus(dim, start);
        pads[cut.axis] = start;
        pads[rank + cut.axis] = ctx.minus(after, len);
    }
    let pads = ctx.vector(&pads);
    let grad = padded(ctx, g, pads);
    ctx.only(0, grad)
}

/// Zeros around `x`. ONNX Runtime pads no bf16.
fn padded(ctx: &mut VjpContext<'_, '_>, x: ValueId, pads: ValueId) -> ValueId {
    let dtype = ctx.patch.dtype(x);
    let x = match dtype {
        DType::BF16 => ctx.patch.cast(x, DType::F32),
        _ => x,
    };
    let zero = ctx.patch.scalar_like(x, 0.0);
    let padded = ctx.patch.node(Op::new("Pad"), &[x, pads, zero]);
    ctx.patch.cast(padded, dtype)
}

fn within(ctx: &mut VjpContext<'_, '_>, start: Number, dim: Number) -> Number {
    let start = ctx.most(start, Number::Known(0));
    ctx.least(start, dim)
}

/// Zeros between the `len` elements of an axis, for the ones that were stepped over.
fn dilate(ctx: &mut VjpContext<'_, '_>, g: ValueId, shape: &mut Shape, cut: &Cut, len: i64) -> ValueId {
    let (axis, rank) = (cut.axis, shape.len());
    let apart = ctx.patch.unsqueeze(g, &[axis as i64 + 1]);
    let mut pads = vec![0; 2 * (rank + 1)];
    pads[rank + 1 + axis + 1] = cut.step - 1;
    let pads = ctx.patch.ints(&pads);
    let padded = padded(ctx, apart, pads);
    let y = ctx.output();
    let target: Vec<Number> = (0..rank)
        .map(|i| match &shape[i] {
            _ if i == axis => Number::Known(len * cut.step),
            Dim::Known(n) => Number::Known(*n as i64),
            _ if i < axis => Number::Known(0),
            _ => ctx.dim(y, i),
        })
        .collect();
    let target = ctx.vector(&target);
    let flat = ctx.patch.reshape_to(padded, target);
    let span = ((len - 1) * cut.step + 1).max(0);
    shape[axis] = Dim::Known(span as u64);
    ctx.patch.slice(flat, axis as i64, 0, span)
}

fn pad(ctx: &mut VjpContext<'_, '_>) -> Grads {
    if ctx.wants(2) {
        return Err(ctx.error("the padding must not depend on what is trained"));
    }
    if ctx.node.op.str("mode") != Some("constant") {
        return Err(ctx.error("only constant padding has a gradient here"));
    }
    if ctx.const_ints(1).is_some_and(|pads| pads.iter().any(|p| *p < 0)) {
        return Err(ctx.error("negative padding has no gradient here"));
    }
    let (g, x, pads) = (ctx.grad()?, ctx.input(0)?, ctx.input(1)?);
    let rank = ctx.shape(x)?.len();
    let (mut axes, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for axis in 0..rank {
        if is_zero(ctx, pads, axis) && is_zero(ctx, pads, rank + axis) {
            continue;
        }
        let (start, dim) = (ctx.element(pads, axis), ctx.dim(x, axis));
        axes.push(axis as i64);
        starts.push(start);
        ends.push(ctx.plus(start, dim));
    }
    if axes.is_empty() {
        return ctx.only(0, g);
    }
    let (starts, ends) = (ctx.vector(&starts), ctx.vector(&ends));
    let axes = ctx.patch.ints(&axes);
    let grad = ctx.patch.node(Op::new("Slice"), &[g, starts, ends, axes]);
    ctx.only(0, grad)
}

fn is_zero(ctx: &VjpContext<'_, '_>, pads: ValueId, index: usize) -> bool {
    ctx.known_ints(pads).is_some_and(|ints| ints.get(index) == Some(&Dim::Known(0)))
}

#[cfg(test)]
mod tests {
    use crate::autodiff::gradcheck::{differentiate, gradcheck, gradient_error, with_loss};
    use crate::ir::text::parse;
    use dijiang_format::dtype::DType;

    /// No kernel of ONNX Runtime pads bf16.
    #[test]
    fn gradients_in_bf16_are_padded_in_f32() {
        let text = r#"graph "g" {
  input %x: bf16[4]
  const %start: i64[1] = [1]
  const %end: i64[1] = [3]
  %y = Slice(%x, %start, %end)
  output "y" %y
}"#;
        let mut graph = parse(text).expect("a graph");
        with_loss(&mut graph);
        let loss = graph.output("loss").expect("the loss");
        differentiate(&mut graph, loss).expect("it has a gradient");
        let padded = graph.nodes().find(|(_, node)| node.op.is("Pad")).expect("it is padded").1;
        assert_eq!(graph.value(padded.outputs[0]).ty.dtype, Some(DType::F32));
    }

    #[test]
    fn constant_bounds() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 5, time]
  const %one: i64[1] = [1]
  const %last: i64[1] = [-1]
  const %axis: i64[1] = [-2]
  const %most: i64[1] = [9223372036854775807]
  const %final: i64[1] = [2]
  const %starts: i64[2] = [-3, -2]
  const %ends: i64[2] = [-1, 9]
  const %axes: i64[2] = [1, 2]
  const %three: i64[3] = [0, 1, 0]
  const %four: i64[3] = [9, 4, 2]
  %a = Slice(%x, %one, %last, %axis)
  %b = Slice(%x, %starts, %ends, %axes)
  %c = Slice(%x, %three, %four)
  %d = Slice(%x, %last, %most, %final)
  %e = Mul(%x, %d)
  output "a" %a
  output "b" %b
  output "c" %c
  output "e" %e
}"#,
        );
    }

    #[test]
    fn steps() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 5, time, 6]
  const %zero: i64[1] = [0]
  const %one: i64[1] = [1]
  const %most: i64[1] = [9223372036854775807]
  const %axis: i64[1] = [-1]
  const %middle: i64[1] = [1]
  const %two: i64[1] = [2]
  const %starts: i64[2] = [1, -5]
  const %ends: i64[2] = [5, -1]
  const %axes: i64[2] = [1, -1]
  const %steps: i64[2] = [2, 3]
  %a = Slice(%x, %zero, %most, %axis, %two)
  %b = Slice(%x, %one, %most, %axis, %two)
  %c = Slice(%x, %one, %most, %middle, %two)
  %d = Slice(%x, %starts, %ends, %axes, %steps)
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
}"#,
        );
    }

    #[test]
    fn computed_bounds() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 9, 2]
  input %like: f32[time]
  const %zero: i64[1] = [0]
  const %most: i64[1] = [9223372036854775807]
  const %axis: i64[1] = [1]
  %time = Shape(%like)
  %back = Neg(%time)
  %a = Slice(%x, %zero, %time, %axis)
  %b = Slice(%x, %back, %most, %axis)
  %c = Slice(%x, %time, %most, %axis)
  output "a" %a
  output "b" %b
  output "c" %c
}"#,
        );
    }

    #[test]
    fn padding_is_cut_off() {
        gradcheck(
            r#"graph "g" {
  input %x: f32[batch, 3, time]
  const %pads: i64[6] = [0, 1, 0, 0, 2, 1]
  const %none: i64[6] = [0, 0, 0, 0, 0, 0]
  const %zeros: i64[5] = [0, 0, 0, 0, 0]
  const %value: f32[] = [2.0]
  %batch = Shape(%x) {start: 0, end: 1}
  %some = Concat(%zeros, %batch) {axis: 0}
  %a = Pad(%x, %pads, %value)
  %b = Pad(%x, %none)
  %c = Pad(%x, %some)
  output "a" %a
  output "b" %b
  output "c" %c
}"#,
        );
    }

    #[test]
    fn backward_steps_are_refused() {
        insta::assert_snapshot!(gradient_error(
            r#"graph "g" {
  input %x: f32[4]
  const %last: i64[1] = [-1]
  const %least: i64[1] = [-9]
  const %axis: i64[1] = [0]
  const %step: i64[1] = [-1]
  %y = Slice(%x, %last, %least, %axis, %step) "reversed"
  %s = ReduceSum(%y) {keepdims: 0}
  output "s" %s
}"#
        ));
    }
}
