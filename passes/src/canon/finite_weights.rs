//! Matches: `Where(c, a, x)` where x is a `Softmax`, or one whose NaN a guard made a number, and c asks whether x is infinite,
//! as `nan_to_num` does
//! Becomes: x
//! Exact: yes: what a softmax gives is NaN, or between zero and one
//! Declines when: x may be infinite, or c asks about another value

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct FiniteWeights;

impl GraphRule for FiniteWeights {
    fn name(&self) -> &'static str {
        "finite_weights"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let (condition, x) = (node.input(0)?, node.input(2)?);
            let asks = node.op.is("Where") && asks_whether_infinite(w.graph, condition, x);
            (asks && is_never_infinite(w.graph, x)).then(|| vec![w.current(x)])
        })
    }
}

fn uncast(graph: &Graph, value: ValueId) -> ValueId {
    graph.made_by(value, "Cast").and_then(|cast| cast.input(0)).unwrap_or(value)
}

/// Whether a condition holds only where `x` is infinite.
fn asks_whether_infinite(graph: &Graph, condition: ValueId, x: ValueId) -> bool {
    let condition = uncast(graph, condition);
    if let Some(both) = graph.made_by(condition, "And") {
        return both.inputs.iter().flatten().any(|part| asks_whether_infinite(graph, *part, x));
    }
    let asked = graph.made_by(condition, "IsInf").and_then(|node| node.input(0));
    asked.is_some_and(|asked| uncast(graph, asked) == uncast(graph, x))
}

fn is_never_infinite(graph: &Graph, value: ValueId) -> bool {
    let value = uncast(graph, value);
    if graph.made_by(value, "Softmax").is_some() {
        return true;
    }
    let Some([Some(condition), Some(number), Some(x)]) = graph.made_by(value, "Where").map(|n| &n.inputs[..])
    else {
        return false;
    };
    let guards = graph.made_by(*condition, "IsNaN").is_some_and(|node| node.input(0) == Some(*x));
    guards && graph.as_scalar(*number).is_some_and(f64::is_finite) && is_never_infinite(graph, *x)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const TEXT: &str = r#"graph "g" {
  input %x: f32[batch, 4, time, keys]
  const %zero: f32[1] = [0.0]
  const %most: f32[1] = [3.4e38]
  %p = Softmax(%x) {axis: -1} "p"
  %nan = IsNaN(%p)
  %guarded = Where(%nan, %zero, %p) "guarded"
  %wide = Cast(%guarded) {to: "f64"}
  %infinite = IsInf(%wide)
  %positive = Greater(%guarded, %zero)
  %is = Cast(%infinite) {to: "bool"}
  %both = And(%is, %positive)
  %y = Where(%both, %most, %guarded) "y"
  output "y" %y
}"#;

    #[test]
    fn a_softmax_is_never_infinite() {
        insta::assert_snapshot!(after(TEXT));
    }

    #[test]
    fn what_may_be_infinite_is_guarded_still() {
        for (from, to) in [
            ("Softmax(%x) {axis: -1}", "Exp(%x)"),
            ("IsInf(%wide)", "IsInf(%x)"),
            ("And(%is, %positive)", "Or(%is, %positive)"),
            ("const %zero: f32[1] = [0.0]", "const %zero: f32[1] = [inf]"),
        ] {
            assert!(after(&TEXT.replace(from, to)).contains("IsInf"), "{to}");
        }
    }
}
