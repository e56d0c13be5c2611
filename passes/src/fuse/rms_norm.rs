//! Matches: x / √(mean(x²) + ε) · w over the last axis, in f32 or in casts to it and back
//! Becomes: `SimplifiedLayerNormalization`
//! Exact: yes, up to rounding: the kernel sums in f32 too
//! Declines when: the weight is no vector, has another type than x and its cast, or ε is not a number

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::pattern::{Match, Pat};

pub(super) struct RmsNorm;

impl GraphRule for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_matches(graph, self.name(), &scaled_norm(), fused)
    }
}

fn scaled_norm() -> Pat {
    let square = Pat::op("Mul", [Pat::var("wide"), Pat::var("wide")]);
    let mean = Pat::op("ReduceMean", [square]).with_int_of("keepdims", &[1]).bind("mean");
    let root = Pat::op("Sqrt", [Pat::op("Add", [mean, Pat::Scalar.bind("epsilon")])]);
    let x = Pat::var("x").maybe_cast().bind("wide");
    let normal = Pat::op("Div", [x, root]).maybe_cast();
    Pat::op("Mul", [normal, Pat::var("weight")])
}

fn fused(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let ty = |name: &str| found.get(name).map(|value| &w.graph.value(value).ty);
    let weight = ty("weight")?;
    // A weight in f32 is of the cast, which has its type.
    let source = ["x", "wide"].into_iter().find(|name| ty(name).is_some_and(|x| x.dtype == weight.dtype))?;
    let x = ty(source)?;
    let last = x.rank()? as i64 - 1;
    let (mean, _) = w.graph.producer(found.get("mean")?)?;
    let axes = w.graph.node(mean).op.ints("axes");
    let fits = matches!(axes, Some([axis]) if *axis == -1 || *axis == last)
        && weight.rank() == Some(1)
        && weight.shape.as_ref()?.last()?.known()? == x.shape.as_ref()?.last()?.known()?;
    if !fits {
        return None;
    }
    let epsilon = w.graph.as_scalar(found.get("epsilon")?)?;
    let op = Op::new("SimplifiedLayerNormalization")
        .with("axis", -1i64)
        .with("epsilon", epsilon as f32)
        .with("stash_type", 1i64);
    let inputs = [found.get(source)?, found.get("weight")?].map(|value| w.current(value));
    Some(vec![w.patch.node(op, &inputs)])
}

#[cfg(test)]
mod tests {
    use super::RmsNorm;
    use crate::fuse::tests::after;

    #[test]
    fn a_norm_in_f32_is_one_node() {
        insta::assert_snapshot!(after(
            &RmsNorm,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  const %e: f32[] = [0.25]
  %s = Mul(%x, %x)
  %m = ReduceMean(%s) {axes: [-1], keepdims: 1}
  %a = Add(%m, %e)
  %r = Sqrt(%a)
  %d = Div(%x, %r)
  %y = Mul(%d, %w)
  output "y" %y
}"#,
            &[("x", &[2, 3, 4])],
        ));
    }

    #[test]
    fn casts_to_f32_and_back_are_part_of_it() {
        insta::assert_snapshot!(after(
            &RmsNorm,
            r#"graph "g" {
  input %x: f16[batch, time, 4]
  weight %w: f16[4] = [1.0, 2.0, 3.0, 4.0]
  const %e: f32[] = [0.25]
  %c = Cast(%x) {to: "f32"}
  %s = Mul(%c, %c)
  %m = ReduceMean(%s) {axes: [-1], keepdims: 1}
  %a = Add(%m, %e)
  %r = Sqrt(%a)
  %d = Div(%c, %r)
  %n = Cast(%d) {to: "f16"}
  %y = Mul(%n, %w)
  output "y" %y
}"#,
            &[("x", &[2, 3, 4])],
        ));
    }

    /// As Gemma has it, which is rounded once.
    #[test]
    fn a_weight_in_f32_is_of_the_cast() {
        let text = r#"graph "g" {
  input %x: f16[batch, time, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  const %e: f32[] = [0.25]
  %c = Cast(%x) {to: "f32"}
  %s = Mul(%c, %c)
  %m = ReduceMean(%s) {axes: [-1], keepdims: 1}
  %a = Add(%m, %e)
  %r = Sqrt(%a)
  %d = Div(%c, %r)
  %y = Mul(%d, %w)
  %n = Cast(%y) {to: "f16"}
  output "y" %n
}"#;
        let fused = after(&RmsNorm, text, &[("x", &[2, 3, 4])]);
        assert!(fused.contains("SimplifiedLayerNormalization(%c, %w)"), "{fused}");
        let apart = text.replace("weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]", "weight %w: f32[1] = [2.0]");
        assert!(!after(&RmsNorm, &apart, &[("x", &[2, 3, 4])]).contains("Simplified"));
    }

    #[test]
    fn another_axis_and_another_numerator_stay() {
        insta::assert_snapshot!(after(
            &RmsNorm,
            r#"graph "g" {
  input %x: f32[batch, 4, 4]
  input %z: f32[batch, 4, 4]
  weight %w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  const %e: f32[] = [0.25]
  %s = Mul(%x, %x)
  %m = ReduceMean(%s) {axes: [1], keepdims: 1}
  %a = Add(%m, %e)
  %r = Sqrt(%a)
  %d = Div(%x, %r)
  %y = Mul(%d, %w)
  %m2 = ReduceMean(%s) {axes: [-1], keepdims: 1}
  %a2 = Add(%m2, %e)
  %r2 = Sqrt(%a2)
  %d2 = Div(%z, %r2)
  %y2 = Mul(%d2, %w)
  output "y" %y
  output "y2" %y2
}"#,
            &[("x", &[2, 4, 4]), ("z", &[2, 4, 4])],
        ));
    }
}
