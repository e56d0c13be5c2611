//! Matches: x · sigmoid(x)
//! Becomes: `QuickGelu` with α = 1
//! Exact: yes, up to rounding
//! Declines when: the gate is that of another value

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct Silu;

impl GraphRule for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.is("Mul") {
            true => fused(w, node),
            false => None,
        })
    }
}

fn fused(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let [a, b] = [node.input(0)?, node.input(1)?];
    let is_gated = |x: ValueId, gate: ValueId| {
        w.graph.made_by(gate, "Sigmoid").is_some_and(|sigmoid| sigmoid.input(0) == Some(x))
    };
    let x = [(a, b), (b, a)].into_iter().find_map(|(x, gate)| is_gated(x, gate).then_some(x))?;
    let x = w.current(x);
    let op = Op::in_domain("com.microsoft", "QuickGelu").with("alpha", 1.0f32);
    Some(vec![w.patch.node(op, &[x])])
}

#[cfg(test)]
mod tests {
    use super::Silu;
    use crate::fuse::tests::after;

    #[test]
    fn only_a_value_gated_by_itself_is_one_node() {
        insta::assert_snapshot!(after(
            &Silu,
            r#"graph "g" {
  input %x: f32[batch, 4]
  input %z: f32[batch, 4]
  %a = Sigmoid(%x)
  %b = Mul(%a, %x)
  %c = Mul(%b, %z)
  output "silu" %c
  %d = Mul(%z, %a)
  output "gate of another value" %d
}"#,
            &[("x", &[2, 4]), ("z", &[2, 4])],
        ));
    }
}
