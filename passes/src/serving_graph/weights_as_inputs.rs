//! Weights as inputs, so that several graphs share one copy on a device.

use crate::ir::graph::{Graph, Use, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_constant, rebuild};
use crate::precision::widen::rounds_inside;

/// Makes inputs of the weights, by their names.
pub fn weights_as_inputs(graph: &Graph) -> Result<Graph, PatchError> {
    rebuild(graph, "weights_as_inputs", &mut WeightsAsInputs)
}

struct WeightsAsInputs;

impl Rebuild for WeightsAsInputs {
    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        match graph.value(id).is_weight && !is_laid_out_at_loading(graph, id) {
            true => self.input(p, graph, id),
            false => copy_constant(p, graph, id),
        }
    }
}

/// Whether ONNX Runtime lays a weight out anew when it loads the graph, together with the numbers that are constants there:
/// without the scales and the zero points of these it computes with nothing in their place.
fn is_laid_out_at_loading(graph: &Graph, weight: ValueId) -> bool {
    let is_beside_constant = |user: &Use| {
        let Use::Node { node, slot } = user else { return false };
        let node = graph.node(*node);
        let is_constant = node.input(1).is_some_and(|numbers| !graph.value(numbers).is_weight);
        rounds_inside(&node.op) && *slot > 1 && is_constant
    };
    graph.value(weight).uses.iter().any(is_beside_constant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;

    /// Where the numbers are a weight, all are inputs; where nothing is rounded, nothing is laid out with the scales.
    #[test]
    fn scales_stay_beside_numbers_that_stay() {
        let text = r#"graph "g" {
  input %x: f32[batch, 32]
  NUMBERS %w: u8[1, 1, 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
  weight %s: f32[1] = [0.5]
  weight %b: f32[1] = [0.5]
  %product = com.microsoft.MatMulNBits(%x, %w, %s) {K: 32, N: 1, accuracy_level: LEVEL, block_size: 32}
  %y = Add(%product, %b)
  output "y" %y
}"#;
        let cases: [(&str, &str, &[&str]); 3] = [
            ("const", "4", &["x", "b"]),
            ("const", "1", &["x", "s", "b"]),
            ("weight", "4", &["x", "w", "s", "b"]),
        ];
        for (numbers, level, expected) in cases {
            let graph = parse(&text.replace("NUMBERS", numbers).replace("LEVEL", level)).expect("it parses");
            let bound = weights_as_inputs(&graph).expect("it is rebuilt");
            let inputs: Vec<&str> = bound.inputs().iter().map(|v| bound.value(*v).name.as_str()).collect();
            assert_eq!(inputs, expected, "{numbers} {level}");
        }
    }
}
