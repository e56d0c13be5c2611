//! Matches: `com.microsoft::MatMulNBits` and `GatherBlockQuantized` of four bits, with packed zero points or none
//! Becomes: the weight in numbers, worked out by standard operators, and `MatMul` or `Gather`
//! Exact: yes, up to rounding
//! Declines when: its blocks are in another order (`g_idx`), or rows of a table do not end with a block

use crate::canon::{Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

/// The number that stands for 0 where there are no zero points.
const MIDDLE: f64 = 8.0;

/// Writes products with weights of four bits, and rows of such weights, in operators that any runtime has; tells whether
/// there were any.
pub fn expand(graph: &mut Graph) -> Result<bool, PatchError> {
    let applied = rewrite_nodes(graph, "expand_int4", |w, node| match (node.op.domain(), node.op.name()) {
        _ if node.op.int("bits") != Some(4) || node.input(4).is_some() => None,
        ("com.microsoft", "MatMulNBits") => product(w, node),
        ("com.microsoft", "GatherBlockQuantized") => gather(w, node),
        _ => None,
    });
    Ok(applied?.is_some())
}

struct Sizes {
    rows: i64,
    inputs: i64,
    block: i64,
    blocks: i64,
}

impl Sizes {
    fn of(op: &Op) -> Option<Self> {
        let (rows, inputs, block) = (op.int("N")?, op.int("K")?, op.int("block_size").filter(|n| *n > 0)?);
        Some(Self { rows, inputs, block, blocks: (inputs + block - 1) / block })
    }
}

fn product(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let sizes = Sizes::of(&node.op)?;
    let (x, stored) = (w.input(node, 0)?, Stored::of(w, node, 1)?);
    let bias = w.input(node, 5);
    let p = &mut w.patch;
    let dtype = p.ty(x).dtype?;
    let weight = weight(p, &stored, &sizes, dtype)?;
    Some(vec![p.linear(x, weight, bias)])
}

/// Rows of a table `[rows, bytes]`.
fn gather(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let (stored, places) = (Stored::of(w, node, 0)?, w.input(node, 1)?);
    let p = &mut w.patch;
    let [Dim::Known(rows), Dim::Known(bytes)] = *p.ty(stored.numbers).shape.as_deref()? else { return None };
    let (rows, inputs) = (i64::try_from(rows).ok()?, i64::try_from(bytes * 2).ok()?);
    let block = node.op.int("block_size").filter(|n| *n > 0 && inputs % n == 0)?;
    let is_by_row =
        node.op.int("gather_axis") == Some(0) && matches!(node.op.int("quantize_axis"), Some(1 | -1));
    let dtype = p.ty(stored.scales).dtype?;
    if !is_by_row || p.ty(stored.numbers).dtype != Some(DType::U8) {
        return None;
    }
    let table = weight(p, &stored, &Sizes { rows, inputs, block, blocks: inputs / block }, dtype)?;
    Some(vec![p.gather(table, places, 0)])
}

/// Packed numbers, their scales, and their zero points where there are any.
struct Stored {
    numbers: ValueId,
    scales: ValueId,
    zeros: Option<ValueId>,
}

impl Stored {
    fn of(w: &Sweep<'_>, node: &Node, slot: usize) -> Option<Self> {
        Some(Self { numbers: w.input(node, slot)?, scales: w.input(node, 2)?, zeros: w.input(node, 3) })
    }
}

/// `[rows, inputs]`
fn weight(p: &mut Patch<'_>, stored: &Stored, sizes: &Sizes, dtype: DType) -> Option<ValueId> {
    if stored.zeros.is_some_and(|zeros| p.ty(zeros).dtype != Some(DType::U8)) {
        return None;
    }
    let zeros = match stored.zeros {
        Some(zeros) => zero_points(p, zeros, sizes, dtype),
        None => p.constant("middle", Tensor::scalar(dtype, MIDDLE)),
    };
    let numbers = unpacked(p, stored.numbers, [sizes.rows, sizes.blocks, sizes.block], dtype);
    let away = p.sub(numbers, zeros);
    let scales = p.reshape(stored.scales, &[sizes.rows, sizes.blocks, 1]);
    let blocks = p.mul(away, scales);
    let whole = p.reshape(blocks, &[sizes.rows, sizes.blocks * sizes.block]);
    Some(cut(p, whole, sizes.inputs, sizes.blocks * sizes.block))
}

/// `[out, blocks, 1]`
fn zero_points(p: &mut Patch<'_>, zeros: ValueId, sizes: &Sizes, dtype: DType) -> ValueId {
    let there = (sizes.blocks + 1) / 2 * 2;
    let zeros = p.reshape(zeros, &[sizes.rows, there / 2]);
    let zeros = unpacked(p, zeros, [sizes.rows, there, 1], dtype);
    match there == sizes.blocks {
        true => zeros,
        false => p.slice(zeros, 1, 0, sizes.blocks),
    }
}

/// The first columns of a matrix.
fn cut(p: &mut Patch<'_>, whole: ValueId, columns: i64, there: i64) -> ValueId {
    if columns == there { whole } else { p.slice(whole, 1, 0, columns) }
}

/// The halves of bytes, the low one first.
fn unpacked(p: &mut Patch<'_>, bytes: ValueId, shape: [i64; 3], dtype: DType) -> ValueId {
    let bytes = p.cast(bytes, dtype);
    let share = p.mul_scalar(bytes, 1.0 / 16.0);
    let high = p.node(Op::new("Floor"), &[share]);
    let above = p.mul_scalar(high, 16.0);
    let low = p.sub(bytes, above);
    let halves = [low, high].map(|half| p.unsqueeze(half, &[-1]));
    let pairs = p.concat(&halves, -1);
    p.reshape(pairs, &shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::eval::Array;
    use crate::ir::text::{parse, print};
    use crate::ir::verify::verify;
    use crate::testing::{noise, relative_error, run};

    /// Three blocks of 16 for 40 inputs: the last is cut, and the zero points fill a byte and a half.
    fn graph(zeros: &str, slots: &str) -> Graph {
        let numbers: Vec<String> = (0..2 * 3 * 8).map(|i| (i * 37 % 256).to_string()).collect();
        let numbers = numbers.join(", ");
        parse(&format!(
            r#"graph "g" {{
  input %x: f32[batch, time, 40]
  weight %w: u8[2, 3, 8] = [{numbers}]
  weight %s: f32[2, 3] = [0.5, -1.0, 2.0, 0.25, 1.5, 1.0]
  {zeros}
  weight %b: f32[2] = [3.0, -4.0]
  %y = com.microsoft.MatMulNBits(%x, %w, %s{slots}) {{K: 40, N: 2, bits: 4, block_size: 16}}
  output "y" %y
}}"#
        ))
        .expect("it parses")
    }

    #[test]
    fn the_weight_is_worked_out() {
        let packed = "weight %z: u8[2, 2] = [97, 5, 18, 15]";
        let flat = "weight %z: u8[4] = [97, 5, 18, 15]";
        let cases = [("", ""), (packed, ", %z"), (flat, ", %z"), (packed, ", %z, _, %b"), ("", ", _, _, %b")];
        for (zeros, slots) in cases {
            let before = graph(zeros, slots);
            let mut after = before.clone();
            assert_eq!(expand(&mut after), Ok(true));
            assert_eq!(verify(&after), []);
            assert!(after.nodes().all(|(_, node)| node.op.domain().is_empty()));
            let x = [("x", noise(&[2, 3, 40], 1))];
            // Both in f64.
            let error = relative_error(&run(&after, &x)["y"], &run(&before, &x)["y"]);
            assert!(error < 1e-12, "{slots}: {error:e}");
        }
    }

    #[test]
    fn the_operators_of_a_product() {
        let mut after = graph("weight %z: u8[2, 2] = [97, 5, 18, 15]", ", %z");
        assert_eq!(expand(&mut after), Ok(true));
        insta::assert_snapshot!(print(&after));
    }

    #[test]
    fn rows_of_a_table_are_worked_out() {
        let numbers: Vec<String> = (0..3 * 16).map(|i| (i * 37 % 256).to_string()).collect();
        let text = format!(
            r#"graph "g" {{
  input %places: i64[batch, time]
  weight %w: u8[3, 16] = [{}]
  weight %s: f32[3, 2] = [0.5, -1.0, 2.0, 0.25, 1.5, 1.0]
  weight %z: u8[3, 1] = [97, 18, 5]
  %y = com.microsoft.GatherBlockQuantized(%w, %places, %s, %z) {{block_size: 16}}
  output "y" %y
}}"#,
            numbers.join(", ")
        );
        for text in [text.replace(", %z)", ")"), text.clone()] {
            let before = parse(&text).expect("it parses");
            let mut after = before.clone();
            assert_eq!(expand(&mut after), Ok(true));
            assert_eq!(verify(&after), []);
            let places = Array::from_i64(&[2, 2], vec![2, 0, 1, 1]).expect("4 numbers");
            let places = [("places", places)];
            let error = relative_error(&run(&after, &places)["y"], &run(&before, &places)["y"]);
            assert!(error < 1e-12, "{error:e}");
        }
        let mut cut = parse(&text.replace("block_size: 16", "block_size: 64")).expect("it parses");
        assert_eq!(expand(&mut cut), Ok(false));
    }

    #[test]
    fn blocks_in_another_order_and_float_zero_points_stay() {
        let order = "weight %g: i32[40] = random(1)";
        let floats = "weight %z: f32[2, 3] = random(1)";
        for (extra, slots) in [(order, ", _, %g"), (floats, ", %z")] {
            let before = graph(extra, slots);
            let mut after = before.clone();
            assert_eq!(expand(&mut after), Ok(false));
            assert_eq!(print(&after), print(&before));
        }
    }
}
