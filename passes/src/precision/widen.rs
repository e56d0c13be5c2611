//! The same model computed in f32: weights stay as they are stored and are cast where they are read,
//! everything computed from them is f32.
//!
//! Half-precision weights and constants are exact in f32, so what this computes is the model without the
//! rounding of its activations; a constant that was rounded when the model was written stays so. Runtimes without
//! half-precision arithmetic can run it.

use crate::ir::graph::{Def, Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_constant, rebuild};
use dijiang_format::dtype::DType;

/// Rewrites f16 and bf16 arithmetic to f32.
pub fn widen(graph: &Graph) -> Result<Graph, PatchError> {
    rebuild(graph, "widen", &mut Widen)
}

struct Widen;

impl Rebuild for Widen {
    fn input(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        let value = graph.value(id);
        let dtype = value.ty.dtype.map_or(DType::F32, wider);
        p.input(&value.name, dtype, value.ty.shape.clone().unwrap_or_default())
    }

    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        let value = graph.value(id);
        match &value.def {
            Def::Const(tensor) if value.is_weight => {
                let weight = p.weight(&value.name, tensor.clone());
                p.cast(weight, wider(tensor.dtype()))
            }
            Def::Const(tensor) => p.named_constant(&value.name, tensor.cast(wider(tensor.dtype()))),
            Def::Input | Def::Output { .. } => copy_constant(p, graph, id),
        }
    }

    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        if let Some(same) = cast_to_same(p, &node.op, inputs) {
            return vec![same];
        }
        let names = node.outputs.iter().map(|v| graph.value(*v).name.clone()).collect();
        p.named_node(&node.name, wider_op(&node.op), inputs, names)
    }
}

fn wider(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// Whether a product with quantised weights may round its other factor to less than f32.
pub fn rounds_activations(op: &Op) -> bool {
    (op.domain(), op.name()) == ("com.microsoft", "MatMulNBits")
        && op.int("accuracy_level").is_some_and(|l| l > 1)
}

/// The input of a cast that has nothing to do any more.
fn cast_to_same(patch: &mut Patch<'_>, op: &Op, inputs: &[Option<ValueId>]) -> Option<ValueId> {
    let op = wider_op(op);
    let to = op.is("Cast").then(|| op.str("to").map(str::to_owned))??;
    let input = inputs.first().copied().flatten()?;
    (patch.dtype(input).name() == to).then_some(input)
}

fn wider_op(op: &Op) -> Op {
    if rounds_activations(op) {
        return op.clone().with("accuracy_level", 0);
    }
    let to = op.is("Cast").then(|| op.str("to")?.parse().ok().map(wider)).flatten();
    match to {
        Some(to) => op.clone().with("to", to.name()),
        None => op.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};

    #[test]
    fn quantised_products_do_not_round_their_other_factor() {
        let text = r#"graph "g" {
  input %x: f32[batch, 32]
  weight %w: u8[1, 1, 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
  weight %s: f32[1] = [0.5]
  %y = com.microsoft.MatMulNBits(%x, %w, %s) {K: 32, N: 1, accuracy_level: LEVEL, block_size: 32}
  output "y" %y
}"#;
        for (level, rounds) in [("0", false), ("1", false), ("4", true)] {
            let graph = parse(&text.replace("LEVEL", level)).expect("it parses");
            let op = |graph: &Graph| graph.nodes().next().expect("a node").1.op.clone();
            assert_eq!(rounds_activations(&op(&graph)), rounds);
            assert!(!rounds_activations(&op(&widen(&graph).expect("it widens"))));
        }
    }

    #[test]
    fn arithmetic_is_f32_and_weights_stay_as_they_are() {
        let graph = parse(
            r#"graph "g" {
  input %x: f16[batch, 4]
  weight %w: f16[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  %y = MatMul(%x, %w) "y"
  %wide = Cast(%y) {to: "f32"} "wide"
  %half = Cast(%wide) {to: "f16"} "half"
  const %two: f16[] = [2.0]
  %z = Mul(%half, %two) "z"
  output "z" %z
}"#,
        )
        .expect("it parses");
        let wide = widen(&graph).expect("it widens");
        assert_eq!(crate::ir::verify::verify(&wide), []);
        insta::assert_snapshot!(print(&wide));
    }
}
