//! The rounding of products that round what they are given themselves, written out: `MatMulNBits` of accuracy level 4 reads
//! bytes, in blocks as its weights are, each by its largest number. What computes this graph without rounding computes what
//! the operator does.

use super::widen::rounds_inside;
use crate::canon::rewrite_nodes;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};

/// The largest number of a block becomes this byte.
const LARGEST: f64 = 127.0;
/// A block of zeros is divided by it.
const LEAST: f64 = 1e-30;

/// Rounds before each such product whose blocks are whole; any other stays.
pub fn round_to_bytes(graph: &mut Graph) -> Result<(), PatchError> {
    let rewritten = rewrite_nodes(graph, "round_to_bytes", |w, node| {
        let [rows, block] = ["K", "block_size"].map(|size| node.op.int(size).filter(|size| *size > 0));
        let (rows, block) = (rows?, block?);
        if !rounds_inside(&node.op) || rows % block != 0 {
            return None;
        }
        let mut inputs: Vec<Option<ValueId>> =
            (0..node.inputs.len()).map(|slot| w.input(node, slot)).collect();
        inputs[0] = Some(rounded(&mut w.patch, inputs[0]?, [rows / block, block]));
        let op = node.op.clone().with("accuracy_level", 0);
        Some(w.patch.node_outputs(op, &inputs, 1))
    });
    rewritten.map(|_| ())
}

fn rounded(p: &mut Patch<'_>, x: ValueId, [blocks, block]: [i64; 2]) -> ValueId {
    let apart = p.reshape(x, &[-1, blocks, block]);
    let size = p.node(Op::new("Abs"), &[apart]);
    let largest = p.reduce("ReduceMax", size, &[-1], true);
    let count = p.scalar_like(largest, LARGEST);
    let step = p.div(largest, count);
    let least = p.scalar_like(step, LEAST);
    let step = p.node(Op::new("Max"), &[step, least]);
    let steps = p.div(apart, step);
    let whole = p.node(Op::new("Round"), &[steps]);
    let near = p.mul(whole, step);
    let shape = p.shape_of(x, 0, i64::MAX);
    p.reshape_to(near, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::eval::{Array, eval};
    use crate::ir::text::parse;
    use std::collections::BTreeMap;

    /// Weights of 1; of steps of 1 and of 2, what is between two is rounded.
    #[test]
    fn what_a_product_reads_is_rounded_by_blocks() {
        let ones = vec!["153"; 16].join(", ");
        let text = format!(
            r#"graph "g" {{
  input %x: f32[batch, 32]
  weight %w: u8[1, 2, 8] = [{ones}]
  weight %s: f32[2] = [1.0, 1.0]
  %y = com.microsoft.MatMulNBits(%x, %w, %s) {{K: 32, N: 1, accuracy_level: LEVEL, bits: 4, block_size: 16}}
  output "y" %y
}}"#
        );
        let mut x = vec![0.0; 32];
        (x[0], x[1], x[16], x[17]) = (127.0, 0.75, -254.0, 2.75);
        let run = |level: &str, x: &[f64]| {
            let mut graph = parse(&text.replace("LEVEL", level)).expect("it parses");
            round_to_bytes(&mut graph).expect("it is rewritten");
            let x = Array::from_f64(&[1, 32], x.to_vec()).expect("it fills its shape");
            let given = BTreeMap::from([(graph.inputs()[0], x)]);
            eval(&graph, &given, &[graph.outputs()[0].1]).expect("it runs")[0].to_f64()[0]
        };
        assert!((run("1", &x) - (127.0 + 0.75 - 254.0 + 2.75)).abs() < 1e-9);
        assert!((run("4", &x) - (127.0 + 1.0 - 254.0 + 2.0)).abs() < 1e-9);
        assert_eq!(run("4", &[0.0; 32]), 0.0);
    }
}
