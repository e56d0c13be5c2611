//! Matches: a root-mean-square norm of heads that each had a vector added, `[heads, batch, d]` before rows came first
//! Becomes: `SkipSimplifiedLayerNormalization` of rows of heads, which adds the vectors itself
//! Exact: yes, up to rounding: the kernel sums in f32 too
//! Declines when: something else reads what lies between, or sizes are open

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::pattern::{Match, Pat};

pub(super) struct ShiftedNorm;

impl GraphRule for ShiftedNorm {
    fn name(&self) -> &'static str {
        "shifted_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let vectors = Pat::op("Unsqueeze", [Pat::var("vectors")]).with_ints("axes", &[1]);
        let sum = Pat::op("Add", [Pat::var("heads"), vectors]).bind("sum");
        let rows = Pat::op("Transpose", [sum]).with_ints("perm", &[1, 0, 2]).bind("rows");
        let shaped = Pat::op("Reshape", [rows]).bind("shaped");
        let norm = Pat::op("SimplifiedLayerNormalization", [shaped, Pat::var("weight")]);
        rewrite_matches(graph, self.name(), &norm.bind("norm"), fused)
    }
}

fn fused(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let shape = |name: &str| graph.value(found.get(name)?).ty.shape.clone();
    let ([heads, d], rows) = (<[Dim; 2]>::try_from(shape("vectors")?).ok()?, shape("rows")?);
    let (norm, _) = graph.producer(found.get("norm")?)?;
    let norm = graph.node(norm);
    let (last, rank) = (norm.op.int("axis"), shape("shaped")?.len() as i64 - 1);
    let fits = found.is_alone(graph)
        && rows[1..] == [heads, d.clone()]
        && shape("shaped")?.last() == Some(&d)
        && (last == Some(-1) || last == Some(rank));
    if !fits {
        return None;
    }
    let op = Op::in_domain("com.microsoft", "SkipSimplifiedLayerNormalization")
        .with("epsilon", norm.op.float("epsilon")?);
    let [heads, vectors, weight] =
        [found.get("heads")?, found.get("vectors")?, found.get("weight")?].map(|value| w.current(value));
    let rows = w.patch.transpose(heads, &[1, 0, 2]);
    let normal = w.patch.node_outputs(op, &[Some(rows), Some(vectors), Some(weight)], 1)[0];
    let (reshape, _) = graph.producer(found.get("shaped")?)?;
    let target = w.input(graph.node(reshape), 1)?;
    Some(vec![w.patch.node(graph.node(reshape).op.clone(), &[normal, target])])
}

#[cfg(test)]
mod tests {
    use super::ShiftedNorm;
    use crate::fuse::tests::after;

    fn text(perm: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[2, batch, 4]
  weight %b: f32[2, 4] = [1.0, 0.5, -1.0, 0.0, 0.25, 0.0, -1.0, 2.0]
  const %unit: f32[4] = [0.5, 0.5, 0.5, 0.5]
  const %by_head: i64[4] = [-1, 2, 1, 4]
  %v = Unsqueeze(%b) {{axes: [1]}}
  %s = Add(%x, %v)
  %r = Transpose(%s) {{perm: {perm}}}
  %h = Reshape(%r, %by_head)
  %y = SimplifiedLayerNormalization(%h, %unit) {{axis: -1, epsilon: 0.25, stash_type: 1}}
  output "y" %y
}}"#
        )
    }

    #[test]
    fn vectors_of_heads_are_added_by_the_norm() {
        insta::assert_snapshot!(after(&ShiftedNorm, &text("[1, 0, 2]"), &[("x", &[2, 3, 4])]));
    }

    #[test]
    fn heads_that_stay_first_are_left_alone() {
        insta::assert_snapshot!(after(&ShiftedNorm, &text("[0, 1, 2]"), &[("x", &[2, 3, 4])]));
    }
}
