//! Matches: products with a weight `[out, in]` that is transposed, or `[in, out]`, and that nothing else reads
//! Becomes: `com.microsoft::MatMulNBits`, whose other factor is rounded to bytes by blocks where that is faster
//! Exact: no
//! Declines when: the weight is read in two ways, as by an embedding too, or its inputs fill no whole blocks

use super::blocks::{BLOCK, BlockLayout, Blocks, Matrix};
use crate::canon::{Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::PatchError;
use dijiang_format::dtype::DType;
use std::collections::BTreeMap;

const RULE: &str = "int4";
/// Products on the CPU round their other factor to bytes. In f32 they take three times as long at one row
/// (11 and 38 µs at 576 x 1536 on two cores; docs/performance.md).
const ACCURACY_LEVEL: i64 = 4;

/// Lets the linear layers of a graph read weights of four bits. Returns how many weights became that.
pub fn quantize(graph: &mut Graph) -> Result<usize, PatchError> {
    let mut found: BTreeMap<ValueId, Matrix> = BTreeMap::new();
    let mut product_of: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (weight, _, _) in graph.consts() {
        let Some((matrix, products)) = linear(graph, weight) else { continue };
        found.insert(weight, matrix);
        product_of.extend(products.into_iter().map(|node| (graph.node(node).outputs[0], weight)));
    }
    let mut written: BTreeMap<ValueId, [ValueId; 3]> = BTreeMap::new();
    rewrite_nodes(graph, RULE, |w, node| {
        let weight = *product_of.get(&node.outputs[0])?;
        let matrix = &found[&weight];
        let blocks = *written.entry(weight).or_insert_with(|| write(w, weight, matrix.clone()));
        product(w, node, matrix, blocks)
    })?;
    Ok(found.len())
}

/// The weight as the matrix of a linear layer, and the products that read it.
fn linear(graph: &Graph, weight: ValueId) -> Option<(Matrix, Vec<NodeId>)> {
    let value = graph.value(weight);
    let tensor = value.as_const().filter(|t| value.is_weight && t.dims().len() == 2 && !t.is_empty())?;
    let (layout, products) = match products(graph, weight) {
        Some(direct) => (BlockLayout::InOut, direct),
        None => (BlockLayout::OutIn, transposed_products(graph, weight)?),
    };
    let matrix = Matrix { tensor: tensor.clone(), layout };
    let fits = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)
        && matrix.inputs().is_multiple_of(BLOCK);
    fits.then_some((matrix, products))
}

/// The products whose second factor a value is, if all its users are such.
fn products(graph: &Graph, factor: ValueId) -> Option<Vec<NodeId>> {
    let users = graph.value(factor).uses.iter().map(|user| match user {
        Use::Node { node, slot: 1 } if is_product(graph, graph.node(*node)) => Some(*node),
        _ => None,
    });
    users.collect::<Option<Vec<_>>>().filter(|products| !products.is_empty())
}

fn transposed_products(graph: &Graph, weight: ValueId) -> Option<Vec<NodeId>> {
    let users = graph.value(weight).uses.iter().map(|user| match user {
        Use::Node { node, .. } if graph.node(*node).op.is("Transpose") => {
            products(graph, graph.node(*node).outputs[0])
        }
        _ => None,
    });
    Some(users.collect::<Option<Vec<_>>>()?.concat()).filter(|products| !products.is_empty())
}

/// Whether the first factor has rows, as the operator wants.
fn is_product(graph: &Graph, node: &Node) -> bool {
    let rank = node.input(0).and_then(|x| graph.value(x).ty.rank());
    node.op.is("MatMul") && rank.is_some_and(|rank| rank >= 2)
}

/// The names keep their modules, which sites are called after.
fn write(w: &mut Sweep<'_>, weight: ValueId, matrix: Matrix) -> [ValueId; 3] {
    let name = &w.graph.value(weight).name;
    let Blocks { numbers, scales, zeros } = matrix.blocks();
    let parts = [("int4", numbers), ("scales", scales), ("zeros", zeros)];
    parts.map(|(part, tensor)| w.patch.weight(&format!("{name}_{part}"), tensor))
}

fn product(w: &mut Sweep<'_>, node: &Node, matrix: &Matrix, blocks: [ValueId; 3]) -> Option<Vec<ValueId>> {
    let op = Op::in_domain("com.microsoft", "MatMulNBits")
        .with("K", matrix.inputs() as i64)
        .with("N", matrix.outputs() as i64)
        .with("bits", 4i64)
        .with("block_size", BLOCK as i64)
        .with("accuracy_level", ACCURACY_LEVEL);
    let [numbers, scales, zeros] = blocks;
    let x = w.input(node, 0)?;
    Some(vec![w.patch.node(op, &[x, numbers, scales, zeros])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::ir::verify::verify;
    use crate::testing::{noise, relative_error, run};

    fn quantized(text: &str) -> (Graph, Graph, usize) {
        let before = parse(text).expect("a graph");
        let mut graph = before.clone();
        let count = quantize(&mut graph).expect("a patch");
        assert_eq!(verify(&graph), []);
        (before, graph, count)
    }

    const LAYERS: &str = r#"graph "g" {
  input %x: f32[batch, time, 64]
  weight %up: f32[96, 64] = random(1)
  weight %down: f32[96, 64] = random(2)
  %t = Transpose(%up) {perm: [1, 0]}
  %h = MatMul(%x, %t)
  %y = MatMul(%h, %down)
  %z = MatMul(%y, %t)
  output "y" %y
  output "z" %z
}"#;

    #[test]
    fn linear_layers_read_blocks_of_four_bits() {
        let (before, graph, count) = quantized(LAYERS);
        assert_eq!(count, 2);
        insta::assert_snapshot!(print(&graph));
        let x = [("x", noise(&[2, 3, 64], 3))];
        let (found, expected) = (run(&graph, &x), run(&before, &x));
        // Steps of a block are a ninth of a standard deviation or so, half a step at most is lost, and of errors that
        // are independent a sum has as much as each number: some 7 % for one layer, more after several.
        for (name, most) in [("y", 0.2), ("z", 0.3)] {
            let error = relative_error(&found[name], &expected[name]);
            assert!(error > 0.01 && error < most, "{name}: {error}");
        }
    }

    /// Read by a lookup too, transposed and not transposed, by a sum, no whole blocks, a first factor, a batch of matrices.
    #[test]
    fn weights_that_are_read_otherwise_stay() {
        let (before, graph, count) = quantized(
            r#"graph "g" {
  input %x: f32[batch, 32]
  input %ids: i64[batch]
  weight %tied: f32[64, 32] = random(1)
  weight %both: f32[32, 32] = random(2)
  weight %sum: f32[32, 32] = random(3)
  weight %odd: f32[8, 33] = random(4)
  weight %first: f32[32, 32] = random(5)
  weight %cube: f32[2, 32, 32] = random(6)
  const %row: f32[1, 33] = random(7)
  %e = Gather(%tied, %ids) {axis: 0}
  %s = Add(%x, %e)
  %tt = Transpose(%tied) {perm: [1, 0]}
  %logits = MatMul(%s, %tt)
  %bt = Transpose(%both) {perm: [1, 0]}
  %b = MatMul(%s, %both)
  %c = MatMul(%b, %bt)
  %u = Add(%sum, %sum)
  %d = MatMul(%c, %u)
  %ot = Transpose(%odd) {perm: [1, 0]}
  %o = MatMul(%row, %ot)
  %xt = Transpose(%x) {perm: [1, 0]}
  %f = MatMul(%first, %xt)
  %q = MatMul(%x, %cube)
  output "logits" %logits
  output "d" %d
  output "o" %o
  output "f" %f
  output "q" %q
}"#,
        );
        assert_eq!((count, print(&graph)), (0, print(&before)));
    }
}
