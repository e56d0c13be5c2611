//! Tokens, masks and positions as 64 bits, which is what decoding with memory of its own writes.

use crate::ir::graph::{Graph, ValueId};
use crate::ir::infer::Type;
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, MASK, POSITIONS};

/// Makes such inputs of 32 bits i64, as tf2onnx writes them, and casts them back.
pub fn wide_integers(graph: &mut Graph) -> Result<(), PatchError> {
    let is_narrow = |v: &ValueId| graph.value(*v).ty.dtype == Some(DType::I32);
    let inputs = [IDS, MASK, POSITIONS].iter().filter_map(|name| graph.input(name));
    let narrow: Vec<ValueId> = inputs.filter(is_narrow).collect();
    if narrow.is_empty() {
        return Ok(());
    }
    let change = {
        let mut p = Patch::new(graph, "wide_integers");
        for input in narrow {
            let name = graph.value(input).name.clone();
            p.set_scope(&name);
            let cast = p.node(Op::new("Cast").with("to", DType::I32.name()), &[input]);
            p.replace(input, cast);
            p.set_input_type(input, Type { dtype: Some(DType::I64), ..graph.value(input).ty.clone() });
        }
        p.finish()
    };
    graph.apply(change)?;
    graph.refresh_types()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::ir::verify::verify;

    const TEXT: &str = r#"graph "g" {
  input %input_ids: i32[batch, sequence]
  input %attention_mask: i64[batch, sequence]
  input %lengths: i32[batch]
  weight %table: f32[20, 4] = random(1)
  %mask = Cast(%attention_mask) {to: "i32"}
  %seen = Mul(%input_ids, %mask)
  %y = Gather(%table, %seen) {axis: 0}
  output "y" %y
  output "lengths" %lengths
}"#;

    #[test]
    fn integers_of_32_bits_are_cast_back() {
        let mut graph = parse(TEXT).expect("it parses");
        wide_integers(&mut graph).expect("it is written");
        assert_eq!(verify(&graph), []);
        let printed = print(&graph);
        assert!(printed.contains("input %input_ids: i64[batch, sequence]"), "{printed}");
        assert!(printed.contains("Cast(%input_ids) {to: \"i32\"}"), "{printed}");
        // Nobody else's.
        assert!(printed.contains("input %lengths: i32[batch]"), "{printed}");
    }

    #[test]
    fn integers_of_64_bits_stay() {
        let mut graph = parse(
            &TEXT
                .replace("%input_ids: i32", "%input_ids: i64")
                .replace("%mask = Cast(%attention_mask) {to: \"i32\"}", "%mask = Identity(%attention_mask)"),
        )
        .expect("it parses");
        let before = print(&graph);
        wide_integers(&mut graph).expect("nothing is written");
        assert_eq!(print(&graph), before);
    }
}
