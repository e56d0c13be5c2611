//! Products with weights in blocks of few bits, and rows of such weights.

use super::ROW;
use super::matmul::matmul;
use crate::ir::eval::{Array, EvalContext};
use crate::ir::infer::{InferContext, Type};
use crate::ir::op::{AttrSpec, Op, OpSpec};
use crate::ir::shape::{Dim, show};
use dijiang_format::dtype::DType;
use ndarray::{Array2, ArrayD};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
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
    },
    OpSpec {
        domain: "com.microsoft",
        name: "GatherBlockQuantized",
        inputs: 3..=4,
        attrs: &[
            ("bits", AttrSpec::Int(4)),
            ("block_size", AttrSpec::Int(128)),
            ("gather_axis", AttrSpec::Int(0)),
            ("quantize_axis", AttrSpec::Int(1)),
        ],
        infer: infer_gather,
        eval: eval_gather,
        ..ROW
    },
];

/// The weight: `columns` times `blocks` blocks of `block` numbers of `bits` each.
struct Packed {
    rows: usize,
    columns: usize,
    block: usize,
    blocks: usize,
    bits: usize,
    /// Of one column.
    bytes: usize,
}

fn size(op: &Op, name: &str) -> Result<usize, String> {
    let found = op.int(name).unwrap_or_default();
    usize::try_from(found).ok().filter(|n| *n > 0).ok_or_else(|| format!("`{name}` is {found}"))
}

fn bits_of(op: &Op) -> Result<usize, String> {
    let bits = size(op, "bits")?;
    if 8 % bits == 0 { Ok(bits) } else { Err(format!("weights of {bits} bits are not known")) }
}

impl Packed {
    fn of(op: &Op) -> Result<Self, String> {
        let (rows, columns, block) = (size(op, "K")?, size(op, "N")?, size(op, "block_size")?);
        let (bits, blocks) = (bits_of(op)?, rows.div_ceil(block));
        Ok(Self { rows, columns, block, blocks, bits, bytes: blocks * (block * bits / 8) })
    }

    /// A table `[columns, bytes]`.
    fn of_table(op: &Op, [columns, bytes]: [usize; 2]) -> Result<Self, String> {
        let (block, bits) = (size(op, "block_size")?, bits_of(op)?);
        let rows = bytes * 8 / bits;
        Ok(Self { rows, columns, block, blocks: rows.div_ceil(block), bits, bytes })
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

/// The weight `[K, N]`.
fn unpack(ctx: &EvalContext<'_>, sizes: &Packed) -> Result<ArrayD<f64>, String> {
    let blocks = Blocks::read(ctx, sizes, 1)?;
    let mut weight = Array2::zeros((sizes.rows, sizes.columns));
    for ((row, column), number) in weight.indexed_iter_mut() {
        *number = blocks.number(column, row)?;
    }
    Ok(weight.into_dyn())
}

/// What the numbers of a weight are made of: (number - zero point) · scale, by blocks.
struct Blocks<'s> {
    sizes: &'s Packed,
    numbers: Vec<i64>,
    scales: Vec<f64>,
    zeros: Zeros,
}

enum Zeros {
    Packed(Vec<i64>),
    Given(Vec<f64>),
    Middle,
}

impl<'s> Blocks<'s> {
    /// The packed numbers are input `slot`, the scales the third and the zero points the fourth.
    fn read(ctx: &EvalContext<'_>, sizes: &'s Packed, slot: usize) -> Result<Self, String> {
        let zeros = match ctx.has(3).then(|| ctx.input(3)).transpose()? {
            Some(zeros) if zeros.as_i().is_ok() => Zeros::Packed(ctx.ints(3)?),
            Some(zeros) => Zeros::Given(zeros.to_f64()),
            None => Zeros::Middle,
        };
        Ok(Self { sizes, numbers: ctx.ints(slot)?, scales: ctx.f(2)?.iter().copied().collect(), zeros })
    }

    fn number(&self, column: usize, row: usize) -> Result<f64, String> {
        let found = self.found(column, row);
        found.ok_or_else(|| "its weight, scales or zero points are too short".to_owned())
    }

    fn found(&self, column: usize, row: usize) -> Option<f64> {
        let sizes = self.sizes;
        let block = row / sizes.block;
        let at = column * sizes.blocks + block;
        let zero_bytes = (sizes.blocks * sizes.bits).div_ceil(8);
        let zero = match &self.zeros {
            Zeros::Packed(packed) => sizes.unpacked(packed.get(column * zero_bytes..)?, block)?,
            Zeros::Given(given) => *given.get(at)?,
            Zeros::Middle => f64::from(1u32 << (sizes.bits - 1)),
        };
        let bytes = self.numbers.get(column * sizes.bytes..(column + 1) * sizes.bytes)?;
        Some((sizes.unpacked(bytes, row)? - zero) * self.scales.get(at)?)
    }
}

/// Whether rows of a table are taken whose numbers are packed along them.
fn is_of_rows(op: &Op, rank: usize) -> bool {
    op.int("gather_axis") == Some(0) && matches!(op.int("quantize_axis"), Some(1 | -1)) && rank == 2
}

fn infer_gather(ctx: &InferContext<'_>) -> Result<Vec<Type>, String> {
    let (table, places) = (ctx.shape(0), ctx.shape(1));
    let known = table.filter(|table| is_of_rows(ctx.op, table.len()) && ctx.dtype(0) == Some(DType::U8));
    let Some((table, places)) = known.zip(places) else { return Ok(vec![Type::maybe(ctx.dtype(2), None)]) };
    let each = 8 / bits_of(ctx.op)? as u64;
    let mut shape = places.clone();
    shape.push(Dim::Known(each).times(&table[1]));
    Ok(vec![Type::maybe(ctx.dtype(2), Some(shape))])
}

fn eval_gather(ctx: &EvalContext<'_>) -> Result<Vec<Array>, String> {
    let table = ctx.i(0)?.shape();
    let [columns, bytes] = *table else { return Err(format!("a table {table:?} is not known")) };
    if !is_of_rows(ctx.op, 2) {
        return Err("a table that is not packed along its rows is not known".to_owned());
    }
    let sizes = Packed::of_table(ctx.op, [columns, bytes])?;
    let blocks = Blocks::read(ctx, &sizes, 0)?;
    let mut numbers = Vec::new();
    for place in ctx.ints(1)? {
        let from_front = if place < 0 { place + columns as i64 } else { place };
        let column = usize::try_from(from_front).ok().filter(|column| *column < columns);
        for row in 0..sizes.rows {
            // There is a row of zeros where there is none.
            numbers.push(column.map_or(Ok(0.0), |column| blocks.number(column, row))?);
        }
    }
    let shape = [ctx.i(1)?.shape(), &[sizes.rows]].concat();
    Ok(vec![Array::from_f64(&shape, numbers)?])
}

#[cfg(test)]
mod tests {
    use crate::ir::eval::{Array, eval};
    use crate::ir::shape::show;
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

    /// Rows of the table that [`product`] multiplies with, and none beyond it.
    #[test]
    fn rows_of_numbers_of_four_bits() {
        let text = r#"graph "g" {
  input %places: i64[batch, time]
  const %w: u8[2, 16] = [33, 0, 0, 0, 0, 0, 0, 0, 67, 0, 0, 0, 0, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0, 135, 0, 0, 0, 0, 0, 0, 0]
  const %s: f32[2, 2] = [1.0, 10.0, 100.0, 1000.0]
  const %z: u8[2, 1] = [33, 0]
  %y = com.microsoft.GatherBlockQuantized(%w, %places, %s) {block_size: 16}
  %o = com.microsoft.GatherBlockQuantized(%w, %places, %s, %z) {block_size: 16}
  output "y" %y
  output "o" %o
}"#;
        let mut graph = parse(text).expect("it parses");
        graph.refresh_types().expect("types");
        let (y, o) = (graph.output("y").expect("y"), graph.output("o").expect("o"));
        assert_eq!(show(graph.value(y).ty.shape.as_deref().unwrap_or_default()), "[batch, time, 32]");
        let places = Array::from_i64(&[1, 3], vec![1, -2, 7]).expect("3 numbers");
        let found = eval(&graph, &BTreeMap::from([(graph.inputs()[0], places)]), &[y, o]).expect("it runs");
        let at =
            |numbers: &[f64]| [numbers[0], numbers[1], numbers[16], numbers[17], numbers[32], numbers[64]];
        assert_eq!(at(&found[0].to_f64()), [-300.0, -200.0, -1000.0, 0.0, -7.0, 0.0]);
        assert_eq!(at(&found[1].to_f64()), [500.0, 600.0, 7000.0, 8000.0, 0.0, 0.0]);
    }
}
