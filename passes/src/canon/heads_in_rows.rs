//! Matches: heads laid out in one row with their tokens for a norm of each: `Reshape(norm(Reshape(x, [0, -1, d])), [0, -1, w])`,
//! where x is `[batch, time, w]`
//! Becomes: the same over `[batch, time, heads, d]`, which keeps the tokens apart
//! Exact: yes
//! Declines when: the norm runs over more than the last axis, or something else reads what it gives

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct HeadsInRows;

impl GraphRule for HeadsInRows {
    fn name(&self) -> &'static str {
        "heads_in_rows"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| if node.op.is("Reshape") { apart(w, node) } else { None })
    }
}

const NORMS: [&str; 3] = ["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"];

/// The last of three dims.
fn last(graph: &Graph, value: ValueId) -> Option<u64> {
    let shape = graph.value(value).ty.shape.as_deref().filter(|shape| shape.len() == 3)?;
    shape[2].known().filter(|n| *n > 0)
}

fn target(graph: &Graph, node: &Node) -> Option<Vec<i64>> {
    graph.as_const(node.input(1)?)?.to_i64()
}

fn apart(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let normed = node.input(0)?;
    let (norm, slot) = w.graph.producer(normed)?;
    let norm = w.graph.node(norm);
    let is_norm = norm.op.domain().is_empty() && NORMS.contains(&norm.op.name());
    let by_head = matches!(norm.op.int("axis"), Some(-1 | 2));
    if !is_norm || !by_head || slot != 0 || w.graph.value(normed).uses.len() != 1 {
        return None;
    }
    let rows = norm.input(0)?;
    let laid = w.graph.made_by(rows, "Reshape")?;
    let x = laid.input(0)?;
    let (width, dim) = (last(w.graph, x)?, last(w.graph, rows)?);
    let is_back = target(w.graph, node)? == [0, -1, width as i64];
    let is_split = target(w.graph, laid)? == [0, -1, dim as i64] && width.is_multiple_of(dim);
    if !is_back || !is_split || ![x, rows, normed].iter().all(|v| w.is_untouched(*v)) {
        return None;
    }
    let heads = w.patch.reshape(x, &[0, 0, (width / dim) as i64, dim as i64]);
    let mut inputs: Vec<Option<ValueId>> = norm.inputs.iter().map(|v| v.map(|v| w.current(v))).collect();
    inputs[0] = Some(heads);
    let normed = w.patch.node_outputs(norm.op.clone().with("axis", -1), &inputs, norm.outputs.len())[0];
    Some(vec![w.patch.reshape(normed, &[0, 0, width as i64])])
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_exact};

    const NORMED: &str = r#"graph "g" {
  input %x: f32[batch, time, 8]
  weight %w: f32[4] = random(1)
  const %split: i64[3] = [0, -1, 4]
  const %back: i64[3] = [0, -1, 8]
  %rows = Reshape(%x, %split)
  %normed = LayerNormalization(%rows, %w) {axis: -1}
  %y = Reshape(%normed, %back)
  output "y" %y
}"#;

    #[test]
    fn normed_heads_keep_their_tokens() {
        insta::assert_snapshot!(after(NORMED));
        check_exact(NORMED, &[("x", &[2, 3, 8])]);
    }

    /// Pairs of tokens, and a norm that something else reads.
    #[test]
    fn other_rows_stay() {
        let pairs = NORMED.replace("[0, -1, 8]", "[0, -1, 16]");
        let read = NORMED.replace("  output", "  output \"normed\" %normed\n  output");
        for text in [pairs, read] {
            assert!(after(&text).contains("f32[batch, ?, "), "{}", after(&text));
        }
    }
}
