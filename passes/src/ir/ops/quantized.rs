//! Products with weights in blocks of few bits.

use super::ROW;
use super::matmul::matmul;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::{Dim, show};
use ndarray::{Array2, ArrayD};

pub(super) const OPS: &[OpSpec] = &[OpSpec {
    domain: "com.microsoft",
    name: "MatMulNBits",
    inputs: 3..=6,
    attrs: &[
        ("K", AttrSpec::RequiredInt),
        ("N", AttrSpec::RequiredInt),
        ("accuracy_level", AttrSpec::Int(0)),
        ("bits", AttrSpec::Int(4)),
        ("block_size", AttrSpec::RequiredInt),
        ("weight_prepacked", AttrSpec::Int(0)),
    ],
    infer,
    eval,
    ..ROW
}];

/// The weight: `columns` times `blocks` blocks of `block` numbers of `bits` each.
struct Packed {
    rows: usize,
    columns: usize,
    block: usize,
    blocks: usize,
    bits: usize,
}

impl Packed {
    fn of(op: &Op) -> Result<Self, String> {
        let size = |name: &str| {
            let found = op.int(name).unwrap_or_default();
            usize::try_from(found).ok().filter(|n| *n > 0).ok_or_else(|| format!("`{name}` is {found}"))
        };
        let (rows, columns, block, bits) = (size("K")?, size("N")?, size("block_size")?, size("bits")?);
        match 8 % bits {
            0 => Ok(Self { rows, columns, block, blocks: rows.div_ceil(block), bits }),
            _ => Err(format!("weights of {bits} bits are not known")),
        }
    }

    /// Number `at` of a row of packed numbers, the first in the lowest bits.
    fn unpacked(&self, bytes: &[i64], at: usize) -> Option<f64> {
        let each = 8 / self.bits;
        let byte = bytes.get(at / each)?;
        Some(((byte >> (at % each * self.bits)) & ((1 << self.bits) - 1)) as f64)
    }
}

fn infer(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let sizes = Packed::of(ctx.op)?;
    let Some(x) = ctx.shape(0) else { return Ok(vec![Type::maybe(ctx.dtype(0), None)]) };
    let mut shape = x.clone();
    match shape.last_mut() {
        Some(last) if last.agrees(&Dim::Known(sizes.rows as u64)) => *last = Dim::Known(sizes.columns as u64),
        _ => return Err(format!("{} does not end in K = {}", show(x), sizes.rows)),
    }
    Ok(vec![Type::maybe(ctx.dtype(0), Some(shape))])
}

fn eval(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    if ctx.has(4) {
        return Err("blocks in another order (`g_idx`) are not evaluated".to_owned());
    }
    let weight = unpack(ctx, &Packed::of(ctx.op)?)?;
    let product = matmul(ctx.f(0)?, &weight)?;
    let result =
        if ctx.has(5) { super::elementwise::zip(&product, ctx.f(5)?, |x, b| x + b)? } else { product };
    Ok(vec![Array::F(result)])
}

/// The weight `[K, N]`: (number - zero point) · scale, by blocks.
fn unpack(ctx: &EvalContext<'_>, sizes: &Packed) -> Result<ArrayD<f64>, String> {
    let (numbers, scales) = (ctx.ints(1)?, ctx.f(2)?.iter().copied().collect::<Vec<f64>>());
    let row_bytes = sizes.blocks * (sizes.block * sizes.bits / 8);
    let zero_bytes = (sizes.blocks * sizes.bits).div_ceil(8);
    let zeros: Option<&Array> = if ctx.has(3) { Some(ctx.input(3)?) } else { None };
    let zero_numbers = zeros.map(Array::to_f64);
    let packed = zeros.filter(|z| z.as_i().is_ok()).map(|_| ctx.ints(3)).transpose()?;
    let middle = f64::from(1u32 << (sizes.bits - 1));
    let short = || "its weight, scales or zero points are too short".to_owned();
    let mut weight = Array2::zeros((sizes.rows, sizes.columns));
    for column in 0..sizes.columns {
        let bytes = numbers.get(column * row_bytes..(column + 1) * row_bytes).ok_or_else(short)?;
        for row in 0..sizes.rows {
            let block = row / sizes.block;
            let at = column * sizes.blocks + block;
            let zero = match (&packed, &zero_numbers) {
                (Some(packed), _) => {
                    packed.get(column * zero_bytes..).and_then(|bytes| sizes.unpacked(bytes, block))
                }
                (None, Some(given)) => given.get(at).copied(),
                (None, None) => Some(middle),
            };
            let number = sizes.unpacked(bytes, row).ok_or_else(short)?;
            weight[[row, column]] = (number - zero.ok_or_else(short)?) * scales.get(at).ok_or_else(short)?;
        }
    }
    Ok(weight.into_dyn())
}

#[cfg(test)]
mod tests {
    use crate::ir::eval::{Array, eval};
    use crate::ir::text::parse;
    use std::collections::BTreeMap;

    /// Two columns of two blocks of 16; the ones in x pick numbers 0, 1 and 17 of each column.
    fn product(zeros: &str, slot: &str) -> Vec<f64> {
        let text = format!(
            r#"graph "g" {{
  input %x: f32[batch, 20]
  const %w: u8[2, 2, 8] = [33, 0, 0, 0, 0, 0, 0, 0, 67, 0, 0, 0, 0, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0, 135, 0, 0, 0, 0, 0, 0, 0]
  const %s: f32[2, 2] = [1.0, 10.0, 100.0, 1000.0]
  {zeros}
  %y = com.microsoft.MatMulNBits(%x, %w, %s{slot}) {{K: 20, N: 2, block_size: 16}}
  output "y" %y
}}"#
        );
        let graph = parse(&text).expect("it parses");
        let ones = (0..20).map(|i| f64::from(u8::from([0, 1, 17].contains(&i)))).collect();
        let x = Array::from_f64(&[1, 20], ones).expect("20 numbers");
        let y = eval(&graph, &BTreeMap::from([(graph.inputs()[0], x)]), &[graph.outputs()[0].1]);
        y.expect("it runs")[0].to_f64()
    }

    /// Worked out by hand: the low half of a byte comes first, and zero is 8 where nothing is said.
    #[test]
    fn numbers_of_four_bits() {
        assert_eq!(product("", ""), [-13.0 - 40.0, -500.0]);
        let packed = "const %z: u8[2, 1] = [33, 0]";
        assert_eq!(product(packed, ", %z"), [1.0 + 20.0, 1100.0 + 8000.0]);
        let floats = "const %z: f32[2, 2] = [0.5, 0.0, 5.5, 8.0]";
        assert_eq!(product(floats, ", %z"), [2.0 + 40.0, 0.0]);
    }
}
