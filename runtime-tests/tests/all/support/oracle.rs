//! The f64 interpreter, which shares no code with any runtime.

use dijiang::onnx::import::import;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use std::collections::BTreeMap;
use std::path::Path;

/// Logits of a graph file after each token of one row, from an empty state.
pub(crate) fn exact(file: &Path, row: &[i64]) -> Vec<f64> {
    let graph = import(file).unwrap_or_else(|e| panic!("{e}"));
    let given: BTreeMap<ValueId, Array> =
        graph.inputs().iter().map(|input| (*input, input_array(&graph, *input, row))).collect();
    let wanted = graph.output("logits").expect("an output `logits`");
    let values = eval(&graph, &given, &[wanted]).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    values[0].to_f64()
}

fn input_array(graph: &Graph, input: ValueId, row: &[i64]) -> Array {
    let value = graph.value(input);
    let n = row.len();
    let array = match value.name.as_str() {
        "input_ids" => Array::from_i64(&[1, n], row.to_vec()),
        "position_ids" => Array::from_i64(&[1, n], (0..n as i64).collect()),
        "attention_mask" => Array::from_i64(&[1, n], vec![1; n]),
        _ => {
            // A batch of one, and no past where the state grows.
            let shape = value.ty.shape.as_deref().expect("the rank of a state");
            let size = |(axis, dim): (usize, &dijiang_passes::ir::shape::Dim)| {
                dim.known().unwrap_or(u64::from(axis == 0)) as usize
            };
            let dims: Vec<usize> = shape.iter().enumerate().map(size).collect();
            Array::from_f64(&dims, vec![0.0; dims.iter().product()])
        }
    };
    array.unwrap_or_else(|e| panic!("`{}`: {e}", value.name))
}
