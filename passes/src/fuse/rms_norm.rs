//! Matches: x / √(mean(x²) + ε) · w over the last axis, in f32 or in casts to it and back
//! Becomes: `SimplifiedLayerNormalization`
//! Exact: yes, up to rounding: the kernel sums in f32 too
//! Declines when: the weight is no vector, has another type than x, or ε is not a number

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct RmsNorm;

impl GraphRule for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if !node.op.is("Mul") {
                return None;
            }
            fused(w, node, [0, 1]).or_else(|| fused(w, node, [1, 0]))
        })
    }
}

fn fused(w: &mut Sweep<'_>, node: &Node, [normal, weight]: [usize; 2]) -> Option<Vec<ValueId>> {
    let (x, epsilon) = normalised(w.graph, node.input(normal)?)?;
    let weight = w.input(node, weight)?;
    let (x_type, weight_type) = (w.graph.value(x).ty.clone(), w.patch.ty(weight).clone());
    let fits = weight_type.rank() == Some(1)
        && weight_type.dtype == x_type.dtype
        && weight_type.shape.as_ref()?.last()?.known()? == x_type.shape.as_ref()?.last()?.known()?;
    if !fits {
        return None;
    }
    let op = Op::new("SimplifiedLayerNormalization")
        .with("axis", -1i64)
        .with("epsilon", epsilon as f32)
        .with("stash_type", 1i64);
    let x = w.current(x);
    Some(vec![w.patch.node(op, &[x, weight])])
}

/// What a value is the norm of, before the cast to f32, and ε.
fn normalised(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    let div = graph.made_by(uncast(graph, value), "Div")?;
    let wide = div.input(0)?;
    let sum = graph.made_by(graph.made_by(div.input(1)?, "Sqrt")?.input(0)?, "Add")?;
    let mean = graph.made_by(sum.input(0)?, "ReduceMean")?;
    let square = graph.made_by(mean.input(0)?, "Mul")?;
    let last = graph.value(wide).ty.rank()? as i64 - 1;
    let over_last = matches!(mean.op.ints("axes"), Some([axis]) if *axis == -1 || *axis == last);
    let is_square = square.input(0) == Some(wide) && square.input(1) == Some(wide);
    if !over_last || mean.op.int("keepdims") == Some(0) || !is_square {
        return None;
    }
    Some((uncast(graph, wide), graph.as_scalar(sum.input(1)?)?))
}

fn uncast(graph: &Graph, value: ValueId) -> ValueId {
    graph.made_by(value, "Cast").and_then(|cast| cast.input(0)).unwrap_or(value)
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
