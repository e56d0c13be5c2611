//! The same model computed in f32: weights stay as they are stored and are cast where they are read,
//! everything computed from them is f32.
//!
//! Half-precision weights and constants are exact in f32, so what this computes is the model without the
//! rounding of its activations; a constant that was rounded when the model was written stays so. Runtimes without
//! half-precision arithmetic can run it.
//!
//! Activations that are rounded to whole numbers for a product are not rounded here: what a graph computes with weights of
//! 8 bits, but for that.

use crate::ir::graph::{Def, Graph, Node, Use, ValueId};
use crate::ir::op::{Attr, Op};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_constant, rebuild};
use crate::ir::tensor::Tensor;
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
        p.set_scope(&node.name);
        let unrounded = unrounded(p, graph, node, inputs);
        p.set_scope("");
        if let Some(unrounded) = unrounded {
            return unrounded;
        }
        named(p, graph, node, (wider_op(&node.op), inputs))
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
    rounds_inside(op) || op.is("DynamicQuantizeLinear") || op.is("QuantizeLinear")
}

/// The same of a product that rounds what it is given itself.
pub(crate) fn rounds_inside(op: &Op) -> bool {
    (op.domain(), op.name()) == ("com.microsoft", "MatMulNBits")
        && op.int("accuracy_level").is_some_and(|l| l > 1)
}

/// What stands for the outputs of a node that rounds floats to whole numbers, or that computes with such.
fn unrounded(
    p: &mut Patch<'_>,
    graph: &Graph,
    node: &Node,
    inputs: &[Option<ValueId>],
) -> Option<Vec<ValueId>> {
    let x = inputs.first().copied().flatten()?;
    match node.op.name() {
        _ if !node.op.domain().is_empty() => None,
        "MatMulInteger" => {
            // Of the first factor, one number for each row.
            let [a, b] = [(0, &[1][..]), (1, &[])].map(|(side, axes)| factor(p, inputs, side, axes));
            Some(named(p, graph, node, (Op::new("MatMul"), &[Some(a?), Some(b?)])))
        }
        "ConvInteger" => {
            let rank = inputs.get(1).copied().flatten().and_then(|weight| p.ty(weight).rank())?;
            // Of the weight, one number for each channel that comes out.
            let behind: Vec<i64> = (1..rank as i64).collect();
            let [a, b] = [(0, &[][..]), (1, &behind)].map(|(side, axes)| factor(p, inputs, side, axes));
            let mut conv = Op::new("Conv");
            conv.attrs.clone_from(&node.op.attrs);
            Some(named(p, graph, node, (conv, &[Some(a?), Some(b?)])))
        }
        "DynamicQuantizeLinear" if is_for_products(graph, node) => {
            let scale = p.constant("scale", Tensor::scalar(DType::F32, 1.0));
            let zero = p.constant("zero", Tensor::scalar(DType::U8, 0.0));
            Some(vec![x, scale, zero])
        }
        // What was to be rounded as it came is there as it came.
        "DequantizeLinear" if p.ty(x).dtype.is_some_and(DType::is_float) => Some(vec![x]),
        "DequantizeLinear" => {
            let rounding = p.producer(x).filter(|made| made.op.is("QuantizeLinear"))?;
            let undoes =
                rounding.inputs[1..] == inputs[1..] && rounding.op.int("axis") == node.op.int("axis");
            undoes.then(|| rounding.input(0)).flatten().map(|x| vec![x])
        }
        _ => None,
    }
}

/// A node under the name of the one that it stands for.
fn named(
    p: &mut Patch<'_>,
    graph: &Graph,
    node: &Node,
    (op, inputs): (Op, &[Option<ValueId>]),
) -> Vec<ValueId> {
    let names = node.outputs.iter().map(|v| graph.value(*v).name.clone()).collect();
    p.named_node(&node.name, op, inputs, names)
}

/// Whether what is rounded goes into products alone, of which it is known what they compute.
fn is_for_products(graph: &Graph, rounding: &Node) -> bool {
    const KNOWN: [&str; 3] = ["MatMulInteger", "ConvInteger", "DequantizeLinear"];
    let is_known = |user: &Use| match user {
        Use::Node { node, .. } => KNOWN.iter().any(|op| graph.node(*node).op.is(op)),
        Use::GraphOutput(_) => false,
    };
    graph.value(rounding.outputs[0]).uses.iter().all(is_known)
}

/// A factor of a product of whole numbers as floats, less its zero points; one that was to be rounded is there as it came.
/// Several zero points get `axes` behind them.
fn factor(p: &mut Patch<'_>, inputs: &[Option<ValueId>], side: usize, axes: &[i64]) -> Option<ValueId> {
    let x = inputs.get(side).copied().flatten()?;
    if p.ty(x).dtype.is_some_and(DType::is_float) {
        return Some(x);
    }
    // What a site is called goes by the weight that makes its values.
    let weight = p.value(x).name.clone();
    p.set_scope(&weight);
    let number = p.cast(x, DType::F32);
    let Some(zeros) = inputs.get(side + 2).copied().flatten() else { return Some(number) };
    let mut zeros = p.cast(zeros, DType::F32);
    if !axes.is_empty() && p.ty(zeros).rank() == Some(1) {
        zeros = p.unsqueeze(zeros, axes);
    }
    Some(p.sub(number, zeros))
}

/// The input of a cast that has nothing to do any more.
fn cast_to_same(patch: &mut Patch<'_>, op: &Op, inputs: &[Option<ValueId>]) -> Option<ValueId> {
    let op = wider_op(op);
    let to = op.is("Cast").then(|| op.str("to").map(str::to_owned))??;
    let input = inputs.first().copied().flatten()?;
    // Of what an unknown operator gives nothing is known.
    patch.ty(input).dtype.is_some_and(|dtype| dtype.name() == to).then_some(input)
}

fn wider_op(op: &Op) -> Op {
    if rounds_inside(op) {
        return op.clone().with("accuracy_level", 0);
    }
    if let (true, Some(Attr::Tensor(fill))) = (op.is("ConstantOfShape"), op.attrs.get("value")) {
        return op.clone().with("value", fill.cast(wider(fill.dtype())));
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
    fn what_is_rounded_for_a_product_is_not() {
        let graph = parse(
            r#"graph "g" {
  input %x: f32[batch, 3]
  weight %w: i8[3, 2] = [1, 2, 3, 4, 5, 7]
  const %z: i8[2] = [1, 2]
  const %s: f32[] = [0.5]
  %q, %scale, %zero = DynamicQuantizeLinear(%x) "round"
  %scales = Mul(%scale, %s) "scales"
  %product = MatMulInteger(%q, %w, %zero, %z) "product"
  %wide = Cast(%product) {to: "f32"} "wide"
  %y = Mul(%wide, %scales) "y"
  output "y" %y
  %given = QuantizeLinear(%y, %s) "given"
  %back = DequantizeLinear(%given, %s) "back"
  output "back" %back
  %kept = DequantizeLinear(%w, %s) "kept"
  output "kept" %kept
}"#,
        )
        .expect("it parses");
        let wide = widen(&graph).expect("it widens");
        assert_eq!(crate::ir::verify::verify(&wide), []);
        assert!(graph.nodes().any(|(_, node)| rounds_activations(&node.op)));
        assert!(!wide.nodes().any(|(_, node)| rounds_activations(&node.op)));
        insta::assert_snapshot!(print(&wide), @r#"
        graph "g" {
          input %x: f32[batch, 3]
          const %round/scale: f32[] = [1.0]
          const %s: f32[] = [0.5]
          %scales = Mul(%round/scale, %s) "scales": f32[]
          weight %w: i8[3, 2] = [1, 2, 3, 4, 5, 7]
          %w/Cast:0 = Cast(%w) {to: "f32"} "w/Cast": f32[3, 2]
          const %z: i8[2] = [1, 2]
          %w/Cast_1:0 = Cast(%z) {to: "f32"} "w/Cast_1": f32[2]
          %w/Sub:0 = Sub(%w/Cast:0, %w/Cast_1:0) "w/Sub": f32[3, 2]
          %product = MatMul(%x, %w/Sub:0) "product": f32[batch, 2]
          %y = Mul(%product, %scales) "y": f32[batch, 2]
          %kept = DequantizeLinear(%w, %s) "kept": f32[3, 2]
          output "y" %y
          output "back" %y
          output "kept" %kept
        }
        "#);
    }

    #[test]
    fn windows_over_what_is_rounded() {
        let graph = parse(
            r#"graph "g" {
  input %x: f32[batch, 1, 8]
  weight %w: i8[2, 1, 4] = [1, 2, 3, 4, 5, 6, 7, 8]
  const %z: i8[2] = [1, 2]
  %q, %scale, %zero = DynamicQuantizeLinear(%x) "round"
  %sums = ConvInteger(%q, %w, %zero, %z) {strides: [4]} "sums"
  output "sums" %sums
  %r, %s, %t = DynamicQuantizeLinear(%sums) "again"
  %y = com.example.Product(%r) "y"
  output "y" %y
}"#,
        );
        // An operator that nobody knows is given what it takes.
        insta::assert_snapshot!(print(&widen(&graph.expect("it parses")).expect("it widens")), @r#"
        graph "g" {
          input %x: f32[batch, 1, 8]
          weight %w: i8[2, 1, 4] = [1, 2, 3, 4, 5, 6, 7, 8]
          %w/Cast:0 = Cast(%w) {to: "f32"} "w/Cast": f32[2, 1, 4]
          const %z: i8[2] = [1, 2]
          %w/Cast_1:0 = Cast(%z) {to: "f32"} "w/Cast_1": f32[2]
          %w/Unsqueeze:0 = Unsqueeze(%w/Cast_1:0) {axes: [1, 2]} "w/Unsqueeze": f32[2, 1, 1]
          %w/Sub:0 = Sub(%w/Cast:0, %w/Unsqueeze:0) "w/Sub": f32[2, 1, 4]
          %sums = Conv(%x, %w/Sub:0) {strides: [4]} "sums": f32[batch, 2, 2]
          %r, %s, %t = DynamicQuantizeLinear(%sums) "again": u8[batch, 2, 2], f32[], u8[]
          %y = com.example.Product(%r) "y": ?[..]
          output "sums" %sums
          output "y" %y
        }
        "#);
    }

    /// What is brought back by another scale was changed by more than its rounding.
    #[test]
    fn what_is_brought_back_otherwise_stays_rounded() {
        let graph = parse(
            r#"graph "g" {
  input %x: f32[batch, 3]
  const %s: f32[] = [0.5]
  const %t: f32[] = [0.25]
  %given = QuantizeLinear(%x, %s) "given"
  %back = DequantizeLinear(%given, %t) "back"
  output "back" %back
}"#,
        )
        .expect("it parses");
        let wide = widen(&graph).expect("it widens");
        assert_eq!(wide.nodes().count(), 2);
    }

    /// As half precision meets an operator that is kept as it is.
    #[test]
    fn what_an_unknown_operator_gives_is_cast_as_it_was() {
        let graph = parse(
            r#"graph "g" {
  input %x: f16[batch, 4]
  %r = Resize(%x) "r"
  %y = Cast(%r) {to: "f32"} "y"
  output "y" %y
}"#,
        )
        .expect("it parses");
        insta::assert_snapshot!(print(&widen(&graph).expect("it widens")), @r#"
        graph "g" {
          input %x: f32[batch, 4]
          %r = Resize(%x) "r": ?[..]
          %y = Cast(%r) {to: "f32"} "y": f32[..]
          output "y" %y
        }
        "#);
    }

    /// As masks of exports in half precision are made.
    #[test]
    fn what_a_shape_is_filled_with_is_f32() {
        let text = r#"graph "g" {
  input %shape: i64[2]
  input %x: f16[4]
  %closed = ConstantOfShape(%shape) {value: tensor f16[1]}
  %y = Mul(%closed, %x)
  %counts = ConstantOfShape(%shape) {value: tensor i64[1]}
  output "y" %y
  output "counts" %counts
}"#;
        let wide = widen(&parse(text).expect("it parses")).expect("it widens");
        assert_eq!(crate::ir::verify::verify(&wide), []);
        let dtype = |name: &str| wide.value(wide.output(name).expect("an output")).ty.dtype;
        assert_eq!([dtype("y"), dtype("counts")], [Some(DType::F32), Some(DType::I64)]);
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
