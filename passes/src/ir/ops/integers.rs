//! Products of whole numbers, and the rounding of floats to those and back.

use super::ROW;
use super::elementwise::zip;
use super::matmul::{matmul, product_shape};
use super::window::{CONV_ATTRS, conv, conv_shape};
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type, resolve_axis};
use crate::ir::op::{AttrSpec, OpSpec};
use dijiang_format::dtype::DType;
use ndarray::{ArrayD, Axis, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "QuantizeLinear",
        inputs: 2..=3,
        attrs: &[
            ("axis", AttrSpec::Int(1)),
            ("saturate", AttrSpec::Int(1)),
            ("block_size", AttrSpec::Int(0)),
            ("output_dtype", AttrSpec::Int(0)),
            ("precision", AttrSpec::Int(0)),
        ],
        infer: infer_quantize,
        eval: eval_quantize,
        ..ROW
    },
    OpSpec {
        name: "DequantizeLinear",
        inputs: 2..=3,
        attrs: &[
            ("axis", AttrSpec::Int(1)),
            ("block_size", AttrSpec::Int(0)),
            ("output_dtype", AttrSpec::Int(0)),
        ],
        infer: infer_dequantize,
        eval: eval_dequantize,
        ..ROW
    },
    OpSpec { name: "DynamicQuantizeLinear", outputs: 3..=3, infer: infer_dynamic, eval: eval_dynamic, ..ROW },
    OpSpec { name: "MatMulInteger", inputs: 2..=4, infer: infer_product, eval: eval_product, ..ROW },
    OpSpec {
        name: "ConvInteger",
        inputs: 2..=4,
        attrs: CONV_ATTRS,
        infer: |c| Ok(vec![Type::maybe(Some(DType::I32), conv_shape(c)?)]),
        eval: eval_conv_integer,
        ..ROW
    },
    OpSpec {
        name: "QLinearMatMul",
        inputs: 8..=8,
        infer: infer_rounded_product,
        eval: eval_rounded_product,
        ..ROW
    },
];

/// The numbers that an element type holds.
fn range(dtype: Option<DType>) -> Result<[f64; 2], String> {
    match dtype {
        Some(DType::U8) => Ok([0.0, 255.0]),
        Some(DType::I8) => Ok([-128.0, 127.0]),
        Some(DType::U16) => Ok([0.0, 65535.0]),
        Some(DType::I16) => Ok([-32768.0, 32767.0]),
        Some(other) => Err(format!("rounding to {other} is not evaluated")),
        None => Err("the element type that it rounds to is not known".to_owned()),
    }
}

/// Whether an attribute asks for an element type: by a number of ONNX, which says nothing here.
fn asks_for_a_type(ctx: &InferContext<'_>) -> bool {
    ctx.op.int("output_dtype").is_some_and(|number| number != 0)
}

fn infer_quantize(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = match ctx.has(2) {
        true => ctx.dtype(2),
        false => Some(DType::U8).filter(|_| !asks_for_a_type(ctx)),
    };
    Ok(vec![Type::maybe(dtype, ctx.shape(0).cloned())])
}

fn infer_dequantize(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let dtype = ctx.dtype(1).filter(|_| !asks_for_a_type(ctx));
    Ok(vec![Type::maybe(dtype, ctx.shape(0).cloned())])
}

fn infer_dynamic(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let rounded = Type::maybe(Some(DType::U8), ctx.shape(0).cloned());
    Ok(vec![rounded, Type::new(DType::F32, []), Type::new(DType::U8, [])])
}

fn infer_product(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let shapes = ctx.shape(0).zip(ctx.shape(1));
    let shape = shapes.map(|(a, b)| product_shape(a, b)).transpose()?;
    Ok(vec![Type::maybe(Some(DType::I32), shape)])
}

/// Scales or zero points as they meet what they belong to: one number for all, or one for each index of an axis.
fn along_axis(ctx: &EvalContext<'_>, numbers: Vec<f64>, rank: usize) -> Result<ArrayD<f64>, String> {
    if ctx.int_attr("block_size").is_ok_and(|size| size != 0) {
        return Err("scales of blocks are not evaluated".to_owned());
    }
    let mut dims = vec![1; rank];
    if numbers.len() > 1 {
        dims[resolve_axis(ctx.int_attr("axis")?, rank)?] = numbers.len();
    }
    ArrayD::from_shape_vec(IxDyn(&dims), numbers).map_err(|e| e.to_string())
}

/// The scales and the zero points of inputs 1 and 2.
fn scaling(ctx: &EvalContext<'_>) -> Result<[ArrayD<f64>; 2], String> {
    let rank = ctx.input(0)?.shape().len();
    let scales = ctx.input(1)?.to_f64();
    let zeros = if ctx.has(2) { ctx.input(2)?.to_f64() } else { vec![0.0; scales.len()] };
    Ok([along_axis(ctx, scales, rank)?, along_axis(ctx, zeros, rank)?])
}

fn eval_quantize(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let [scales, zeros] = scaling(ctx)?;
    let [least, most] = range(ctx.dtype)?;
    let scaled = zip(ctx.f(0)?, &scales, |x, scale| (x / scale).round_ties_even())?;
    let moved = zip(&scaled, &zeros, |x, zero| (x + zero).clamp(least, most))?;
    Ok(vec![Array::I(moved.mapv(|x| x as i64))])
}

fn eval_dequantize(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let [scales, zeros] = scaling(ctx)?;
    let moved = zip(&floats(ctx.input(0)?)?, &zeros, |x, zero| x - zero)?;
    Ok(vec![Array::F(zip(&moved, &scales, |x, scale| x * scale)?)])
}

fn eval_dynamic(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let x = ctx.f(0)?;
    let (least, most) = x.iter().fold((0.0f64, 0.0f64), |(a, b), x| (a.min(*x), b.max(*x)));
    // Zeros alone are divided by anything.
    let scale = Some((most - least) / 255.0).filter(|scale| *scale > 0.0).unwrap_or(1.0);
    let zero = (-least / scale).round_ties_even().clamp(0.0, 255.0);
    let rounded = x.mapv(|x| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) as i64);
    let single = |x: f64| ArrayD::from_elem(IxDyn(&[]), x);
    Ok(vec![Array::I(rounded), Array::F(single(scale)), Array::I(single(zero).mapv(|x| x as i64))])
}

fn floats(x: &Array) -> Result<ArrayD<f64>, String> {
    ArrayD::from_shape_vec(IxDyn(x.shape()), x.to_f64()).map_err(|e| e.to_string())
}

fn eval_product(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let [a, b] = [0, 1].map(|slot| match ctx.has(slot + 2) {
        // Of the first factor, one number for each row.
        true => from_zero(ctx, slot, slot + 2, (slot == 0).then_some(1)),
        false => floats(ctx.input(slot)?),
    });
    Ok(vec![Array::I(matmul(&a?, &b?)?.mapv(|x| x as i64))])
}

/// An input less its zero points, which get `after` axes behind them where they are several.
fn from_zero(
    ctx: &EvalContext<'_>,
    slot: usize,
    zeros: usize,
    after: Option<usize>,
) -> Result<ArrayD<f64>, String> {
    let mut zeros = floats(ctx.input(zeros)?)?;
    if zeros.ndim() == 1 {
        (0..after.unwrap_or(0)).for_each(|_| zeros.insert_axis_inplace(Axis(1)));
    }
    zip(&floats(ctx.input(slot)?)?, &zeros, |x, zero| x - zero)
}

fn eval_conv_integer(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let behind = ctx.input(1)?.shape().len().saturating_sub(1);
    let [x, weight] = [0, 1].map(|slot| match ctx.has(slot + 2) {
        // Of the weight, one number for each channel that comes out.
        true => from_zero(ctx, slot, slot + 2, (slot == 1).then_some(behind)),
        false => floats(ctx.input(slot)?),
    });
    let sums = conv(ctx.op, &x?, &weight?, None)?;
    Ok(vec![Array::I(sums.mapv(|x| x as i64))])
}

fn infer_rounded_product(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let shapes = ctx.shape(0).zip(ctx.shape(3));
    let shape = shapes.map(|(a, b)| product_shape(a, b)).transpose()?;
    Ok(vec![Type::maybe(ctx.dtype(7), shape)])
}

fn eval_rounded_product(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let [a, b] = [0, 3].map(|slot| {
        let moved = from_zero(ctx, slot, slot + 2, (slot == 0).then_some(1))?;
        let mut scales = floats(ctx.input(slot + 1)?)?;
        if slot == 0 && scales.ndim() == 1 {
            scales.insert_axis_inplace(Axis(1));
        }
        zip(&moved, &scales, |x, scale| x * scale)
    });
    let [least, most] = range(ctx.dtype)?;
    let scaled = zip(&matmul(&a?, &b?)?, &floats(ctx.input(6)?)?, |x, scale| (x / scale).round_ties_even())?;
    let moved = zip(&scaled, &floats(ctx.input(7)?)?, |x, zero| (x + zero).clamp(least, most))?;
    Ok(vec![Array::I(moved.mapv(|x| x as i64))])
}

#[cfg(test)]
mod tests {
    use crate::ir::eval::{Array, eval};
    use crate::ir::text::{parse, print};
    use std::collections::BTreeMap;

    fn outputs(text: &str, x: &[f64]) -> Vec<Vec<f64>> {
        let graph = parse(text).expect("it parses");
        let x = Array::from_f64(&[1, x.len()], x.to_vec()).expect("they fill it");
        let wanted: Vec<_> = graph.outputs().iter().map(|(_, v)| *v).collect();
        let found = eval(&graph, &BTreeMap::from([(graph.inputs()[0], x)]), &wanted).expect("it runs");
        found.iter().map(Array::to_f64).collect()
    }

    /// Worked out by hand: 255 steps from -51 to 204, so that zero is step 51.
    #[test]
    fn a_product_with_numbers_that_are_rounded_as_they_come() {
        let text = r#"graph "g" {
  input %x: f32[batch, 3]
  const %w: i8[3, 2] = [1, 2, 3, 4, 5, 7]
  const %z: i8[] = [1]
  %q, %s, %p = DynamicQuantizeLinear(%x)
  %y = MatMulInteger(%q, %w, %p, %z)
  output "q" %q
  output "s" %s
  output "p" %p
  output "y" %y
}"#;
        let found = outputs(text, &[-51.0, 0.0, 204.0]);
        assert_eq!(found, [vec![0.0, 51.0, 255.0], vec![1.0], vec![51.0], vec![816.0, -51.0 + 1224.0]]);
        let typed = print(&parse(text).expect("it parses"));
        assert!(typed.contains(": i32[batch, 2]") && typed.contains("u8[batch, 3], f32[], u8[]"), "{typed}");
    }

    #[test]
    fn windows_and_products_of_rounded_numbers() {
        let text = r#"graph "g" {
  input %x: f32[batch, 4]
  const %one: f32[] = [1.0]
  const %half: f32[] = [0.5]
  const %z: u8[] = [10]
  const %line: i64[3] = [1, 1, 4]
  %q = QuantizeLinear(%x, %one, %z)
  %l = Reshape(%q, %line)
  const %kernels: i8[2, 1, 2] = [1, 2, 3, 5]
  const %each: i8[2] = [0, 1]
  %c = ConvInteger(%l, %kernels, %z, %each) {strides: [2]}
  const %w: i8[4, 1] = [1, 1, 2, 2]
  const %none: i8[] = [0]
  const %scales: f32[1] = [0.25]
  %p = QLinearMatMul(%q, %one, %z, %w, %scales, %none, %half, %z)
  output "c" %c
  output "p" %p
}"#;
        // 1·1 + 2·2 and 3·1 + 4·2; then 2·1 + 4·2 and 2·3 + 4·4. (1 + 2 + 6 + 8) / 4 / ½ + 10, to the even one.
        assert_eq!(outputs(text, &[1.0, 2.0, 3.0, 4.0]), [vec![5.0, 11.0, 10.0, 22.0], vec![18.0]]);
        let typed = print(&parse(text).expect("it parses"));
        assert!(typed.contains(": i32[1, 2, 2]") && typed.contains(": u8[batch, 1]"), "{typed}");
    }

    #[test]
    fn rounded_numbers_go_no_further_than_their_type() {
        let text = r#"graph "g" {
  input %x: f32[batch, 4]
  const %s: f32[] = [0.5]
  const %z: i8[] = [1]
  const %each: f32[4] = [1.0, 2.0, 3.0, 4.0]
  %q = QuantizeLinear(%x, %s, %z)
  %y = DequantizeLinear(%q, %each) {axis: -1}
  output "q" %q
  output "y" %y
}"#;
        let asked = text.replace("(%x, %s, %z)", "(%x, %s) {output_dtype: 3}");
        assert!(print(&parse(&asked).expect("it parses")).contains(": ?[batch, 4]"));
        let found = outputs(text, &[0.25, 0.75, 1000.0, -1000.0]);
        assert_eq!(found, [vec![1.0, 3.0, 127.0, -128.0], vec![1.0, 6.0, 381.0, -512.0]]);
    }
}
