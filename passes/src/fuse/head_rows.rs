//! Matches: `[batch, sequence, heads, d]` made `[heads, batch · sequence, d]`, with a rotation on the way
//! Becomes: the rotation of packed heads, and one transpose of rows and heads, which a runtime takes into the product
//! after it
//! Exact: yes
//! Declines when: the heads are no numbers, or something else reads what lies between

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct HeadRows;

impl GraphRule for HeadRows {
    fn name(&self) -> &'static str {
        "head_rows"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.is("Reshape") {
            true => rows(w, node),
            false => None,
        })
    }
}

fn rows(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let [Dim::Known(heads), _, Dim::Known(dim)] = graph.value(node.outputs[0]).ty.shape.as_deref()? else {
        return None;
    };
    let (heads, dim) = (*heads as i64, *dim as i64);
    let last = lone(graph, node.input(0)?, "Transpose")?;
    let (source, rotation) = match last.op.ints("perm")? {
        [2, 0, 1, 3] => (last.input(0)?, None),
        [1, 0, 2, 3] => {
            let rotation = lone(graph, last.input(0)?, "RotaryEmbedding")?;
            let first = lone(graph, rotation.input(0)?, "Transpose")?;
            let source = first.input(0).filter(|_| first.op.ints("perm") == Some(&[0, 2, 1, 3]))?;
            (source, (rotation.op.domain() == "com.microsoft").then_some(rotation))
        }
        _ => return None,
    };
    let is_by_head =
        |shape: &[Dim]| shape.len() == 4 && shape[2..] == [heads, dim].map(|n| Dim::Known(n as u64));
    if !graph.value(source).ty.shape.as_deref().is_some_and(is_by_head) {
        return None;
    }
    let mut x = w.current(source);
    if let Some(rotation) = rotation {
        let packed = w.patch.reshape(x, &[0, 0, heads * dim]);
        let mut inputs = vec![packed];
        for slot in 1..rotation.inputs.len() {
            inputs.push(w.input(rotation, slot)?);
        }
        x = w.patch.node(rotation.op.clone().with("num_heads", heads), &inputs);
    }
    let rows = w.patch.reshape(x, &[-1, heads, dim]);
    Some(vec![w.patch.transpose(rows, &[1, 0, 2])])
}

/// What makes a value that nothing else reads.
fn lone<'g>(graph: &'g Graph, value: ValueId, op: &str) -> Option<&'g Node> {
    let node = graph.node(graph.producer(value)?.0);
    (node.op.name() == op && graph.value(value).uses.len() == 1).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::HeadRows;
    use crate::fuse::tests::after;

    fn text(perm: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, time, 3, 4]
  input %cos: f32[5, 2]
  input %sin: f32[5, 2]
  const %place: i64[1] = [0]
  const %rows: i64[3] = [3, -1, 4]
  %h = Transpose(%x) {{perm: [0, 2, 1, 3]}}
  %r = com.microsoft.RotaryEmbedding(%h, %place, %cos, %sin)
  %t = Transpose(%r) {{perm: {perm}}}
  %y = Reshape(%t, %rows)
  output "y" %y
  %u = Transpose(%x) {{perm: [2, 0, 1, 3]}}
  %z = Reshape(%u, %rows)
  output "z" %z
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 3] = [("x", &[2, 5, 3, 4]), ("cos", &[5, 2]), ("sin", &[5, 2])];

    #[test]
    fn heads_are_rotated_packed_and_turned_once() {
        insta::assert_snapshot!(after(&HeadRows, &text("[1, 0, 2, 3]"), &INPUTS));
    }

    #[test]
    fn another_order_of_rows_keeps_the_rotation_where_it_is() {
        insta::assert_snapshot!(after(&HeadRows, &text("[1, 2, 0, 3]"), &INPUTS));
    }
}
