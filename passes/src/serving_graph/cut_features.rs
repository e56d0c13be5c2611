//! Features of one token in blocks of the sizes that ONNX Runtime's CUDA kernels for `LinearAttention` know. A state
//! is a sum over features, so each block of them is a head of its own with the same values, and what the blocks give
//! is added up. Other sizes run many times slower there, or not at all.
//!
//! *Exact:* up to the order of summation. The state that a graph gives is then `[batch, kv_heads · blocks, block,
//! value_dim]`, the same numbers in the same order as before.

use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use dijiang_format::widths::feature_block;

/// Cuts what can be cut. Returns whether anything was.
pub fn cut_features(graph: &mut Graph) -> Result<bool, PatchError> {
    let sites: Vec<(NodeId, Cut)> =
        graph.nodes().filter_map(|(id, node)| Some((id, Cut::of(graph, node)?))).collect();
    let change = {
        let mut p = Patch::new(graph, "feature_blocks");
        for (id, cut) in &sites {
            let node = graph.node(*id);
            p.set_scope(&node.name);
            cut.write(&mut p, node);
        }
        p.finish()
    };
    graph.apply(change)?;
    Ok(!sites.is_empty())
}

/// How a node is cut.
struct Cut {
    kv_heads: i64,
    group: i64,
    blocks: i64,
    block: i64,
    value_dim: i64,
    /// The graph's output that the state is, where it is one.
    output: Option<String>,
}

impl Cut {
    fn of(graph: &Graph, node: &Node) -> Option<Self> {
        if (node.op.domain(), node.op.name()) != ("com.microsoft", "LinearAttention") {
            return None;
        }
        let shape = |slot: usize| graph.value(node.input(slot)?).ty.shape.as_deref();
        let [_, Dim::Known(1), _] = shape(0)? else { return None };
        let [_, _, Dim::Known(features), Dim::Known(value_dim)] = shape(3)? else { return None };
        let block = feature_block(*features as usize)? as i64;
        let (heads, kv_heads) = (node.op.int("q_num_heads")?, node.op.int("kv_num_heads")?);
        let output = match graph.value(*node.outputs.get(1)?).uses[..] {
            [Use::GraphOutput(index)] => Some(graph.outputs()[index as usize].0.clone()),
            _ => None,
        };
        Some(Self {
            kv_heads,
            group: heads / kv_heads,
            blocks: *features as i64 / block,
            block,
            value_dim: *value_dim as i64,
            output,
        })
    }

    fn write(&self, p: &mut Patch<'_>, node: &Node) {
        let Self { kv_heads, group, blocks, block, value_dim, .. } = *self;
        let (kv, width) = (kv_heads * blocks, blocks * block);
        let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        let q = match group {
            1 => inputs[0],
            // Query heads of one block lie together, as those of one key/value head did.
            _ => {
                let apart = p.reshape(inputs[0], &[0, kv_heads, group, blocks, block]);
                let transposed = p.transpose(apart, &[0, 1, 3, 2, 4]);
                p.reshape(transposed, &[0, 1, kv_heads * group * width])
            }
        };
        let v = self.for_each_block(p, inputs[2], value_dim);
        let state = p.reshape(inputs[3], &[0, kv, block, value_dim]);
        let mut all = vec![Some(q), Some(inputs[1]), Some(v), Some(state)];
        all.extend(inputs.get(4).map(|decay| Some(self.for_each_block(p, *decay, 1))));
        let op = node.op.clone().with("q_num_heads", kv * group).with("kv_num_heads", kv);
        let made = p.node_outputs(op, &all, 2);

        let by_block = p.reshape(made[0], &[0, kv_heads, blocks, group * value_dim]);
        let parts = p.split(by_block, 2, &vec![1; blocks as usize]);
        let sum = parts[1..].iter().fold(parts[0], |sum, part| p.add(sum, *part));
        let y = p.reshape(sum, &[0, 1, kv_heads * group * value_dim]);
        p.replace(node.outputs[0], y);
        match &self.output {
            Some(name) => {
                p.drop_output(name);
                p.output(name, made[1]);
            }
            None => {
                let state = p.reshape(made[1], &[0, kv_heads, width, value_dim]);
                p.replace(node.outputs[1], state);
            }
        }
    }

    /// `[batch, 1, kv_heads · width]` → `[batch, 1, kv_heads · blocks · width]`, each head's for all of its blocks.
    fn for_each_block(&self, p: &mut Patch<'_>, x: ValueId, width: i64) -> ValueId {
        let apart = p.reshape(x, &[0, self.kv_heads, 1, width]);
        let shape = p.ints(&[1, 1, self.blocks, 1]);
        let spread = p.expand(apart, shape);
        p.reshape(spread, &[0, 1, self.kv_heads * self.blocks * width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, run};

    fn text(features: usize) -> String {
        format!(
            r#"graph "g" {{
  input %q: f32[batch, 1, {queries}]
  input %k: f32[batch, 1, {keys}]
  input %v: f32[batch, 1, 6]
  input %s: f32[batch, 2, {features}, 3]
  input %z: f32[batch, 2, {features}, 1]
  input %ones: f32[batch, 1, 2]
  input %g: f32[batch, 1, 2]
  %y, %t = com.microsoft.LinearAttention(%q, %k, %v, %s, %g) {{kv_num_heads: 2, q_num_heads: 4, scale: 1.0, update_rule: "gated"}}
  %d, %u = com.microsoft.LinearAttention(%q, %k, %ones, %z, %g) {{kv_num_heads: 2, q_num_heads: 4, scale: 1.0, update_rule: "gated"}}
  %w = Neg(%u)
  output "y" %y
  output "t" %t
  output "d" %d
  output "w" %w
}}"#,
            queries = 4 * features,
            keys = 2 * features,
        )
    }

    /// The text after cutting, which must compute the same numbers.
    fn after(features: usize) -> String {
        let before = parse(&text(features)).expect("a graph");
        let mut graph = before.clone();
        let cut = cut_features(&mut graph).expect("a patch");
        let shapes: [(&str, &[usize]); 7] = [
            ("q", &[2, 1, 4 * features]),
            ("k", &[2, 1, 2 * features]),
            ("v", &[2, 1, 6]),
            ("s", &[2, 2, features, 3]),
            ("z", &[2, 2, features, 1]),
            ("ones", &[2, 1, 2]),
            ("g", &[2, 1, 2]),
        ];
        let inputs: Vec<_> =
            shapes.iter().zip(1..).map(|((name, dims), seed)| (*name, noise(dims, seed))).collect();
        let (found, expected) = (run(&graph, &inputs), run(&before, &inputs));
        for (name, value) in &expected {
            for (a, b) in found[name].to_f64().iter().zip(value.to_f64()) {
                assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{name}: {a} {b}");
            }
        }
        assert_eq!(cut, print(&graph) != print(&before));
        print(&graph)
    }

    #[test]
    fn features_of_several_blocks_are_heads() {
        insta::assert_snapshot!(after(256));
        assert!(after(192).contains("kv_num_heads: 6"), "blocks of 64");
    }

    #[test]
    fn one_block_and_uneven_features_stay() {
        for features in [64, 128, 160] {
            assert_eq!(after(features), print(&parse(&text(features)).expect("a graph")));
        }
    }
}
