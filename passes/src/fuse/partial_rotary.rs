//! Matches: a rotation of the first dims of `[batch, heads, sequence, dim]`, with the others put after it as they were
//! Becomes: `RotaryEmbedding` of the whole, which is told how many dims it turns
//! Exact: yes
//! Declines when: what follows the rotation is not what was split off x

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::pattern::{LAST_OF_FOUR, Match, Pat};

pub(super) struct PartialRotary;

impl GraphRule for PartialRotary {
    fn name(&self) -> &'static str {
        "partial_rotary"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let part = |output| {
            let parts = Pat::op("Split", [Pat::var("x")]).with_int_of("axis", LAST_OF_FOUR);
            parts.exactly(2, 2).output(output)
        };
        let rotated = Pat::op_in("com.microsoft", "RotaryEmbedding", [part(0)])
            .with_int_of("rotary_embedding_dim", &[0])
            .with_int_of("interleaved", &[0])
            .bind("rotated");
        let joined = Pat::op("Concat", [rotated, part(1)]).with_int_of("axis", LAST_OF_FOUR).exactly(2, 1);
        rewrite_matches(graph, self.name(), &joined, fused)
    }
}

fn fused(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let [x, rotated] = [found.get("x")?, found.get("rotated")?];
    let shape = |value: ValueId| w.graph.value(value).ty.shape.as_deref();
    let ([_, heads, _, _], [.., dim]) = (shape(x)?, shape(rotated)?) else { return None };
    let (heads, dim) = (heads.known()?, dim.known()?);
    let rotation = w.graph.node(w.graph.producer(rotated)?.0);
    let op = rotation.op.clone().with("num_heads", heads as i64).with("rotary_embedding_dim", dim as i64);
    let mut inputs = vec![w.current(x)];
    for slot in 1..rotation.inputs.len() {
        inputs.push(w.input(rotation, slot)?);
    }
    Some(vec![w.patch.node(op, &inputs)])
}

#[cfg(test)]
mod tests {
    use super::PartialRotary;
    use crate::fuse::tests::after;

    #[test]
    fn only_what_was_split_off_comes_back_after_the_rotation() {
        insta::assert_snapshot!(after(
            &PartialRotary,
            r#"graph "g" {
  input %x: f32[batch, 3, 5, 8]
  input %z: f32[batch, 3, 5, 4]
  input %cos: f32[5, 2]
  input %sin: f32[5, 2]
  const %rows: i64[1] = [0]
  const %sizes: i64[2] = [4, 4]
  %p, %q = Split(%x, %sizes) {axis: -1}
  %t = com.microsoft.RotaryEmbedding(%p, %rows, %cos, %sin)
  %y = Concat(%t, %q) {axis: -1}
  output "y" %y
  %a = Concat(%t, %z) {axis: -1}
  output "others" %a
  %b = Concat(%q, %t) {axis: -1}
  output "before" %b
}"#,
            &[("x", &[2, 3, 5, 8]), ("z", &[2, 3, 5, 4]), ("cos", &[5, 2]), ("sin", &[5, 2])],
        ));
    }
}
