//! Matches: `[batch, sequence, heads, d]` made `[heads, batch · sequence, d]`, with a rotation on the way
//! Becomes: the rotation of packed heads, and one transpose of rows and heads, which a runtime takes into the product
//! after it
//! Exact: yes
//! Declines when: the heads are no numbers, or something else reads what lies between

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::pattern::{Match, Pat};

pub(super) struct HeadRows;

impl GraphRule for HeadRows {
    fn name(&self) -> &'static str {
        "head_rows"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let source = || Pat::var("source");
        let plain = Pat::op("Transpose", [source()]).with_ints("perm", &[2, 0, 1, 3]);
        let by_head = Pat::op("Transpose", [source()]).with_ints("perm", &[0, 2, 1, 3]);
        let rotation = Pat::op_in("com.microsoft", "RotaryEmbedding", [by_head]).bind("rotation");
        let rotated = Pat::op("Transpose", [rotation]).with_ints("perm", &[1, 0, 2, 3]);
        let either = Pat::one_of([("plain", plain), ("rotated", rotated)]);
        rewrite_matches(graph, self.name(), &Pat::op("Reshape", [either]).bind("rows"), rows)
    }
}

fn rows(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let shape = |name: &str| graph.value(found.get(name)?).ty.shape.as_deref();
    let [heads, _, dim] = shape("rows")? else { return None };
    let [_, _, own_heads, own_dim] = shape("source")? else { return None };
    if !found.is_alone(graph) || [heads, dim] != [own_heads, own_dim] {
        return None;
    }
    let (Dim::Known(heads), Dim::Known(dim)) = (heads, dim) else { return None };
    let (heads, dim) = (*heads as i64, *dim as i64);
    let mut x = w.current(found.get("source")?);
    if let Some((rotation, _)) = found.get("rotation").and_then(|rotation| graph.producer(rotation)) {
        let rotation = graph.node(rotation);
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
