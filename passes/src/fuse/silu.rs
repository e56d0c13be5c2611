//! Matches: x · sigmoid(x)
//! Becomes: `QuickGelu` with α = 1
//! Exact: yes, up to rounding
//! Declines when: the gate is that of another value

use crate::canon::{GraphRule, rewrite_matches};
use crate::ir::graph::Graph;
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::pattern::Pat;

pub(super) struct Silu;

impl GraphRule for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let gated = Pat::op("Mul", [Pat::op("Sigmoid", [Pat::var("x")]), Pat::var("x")]);
        rewrite_matches(graph, self.name(), &gated, |w, found| {
            let x = w.current(found.get("x")?);
            let op = Op::in_domain("com.microsoft", "QuickGelu").with("alpha", 1.0f32);
            Some(vec![w.patch.node(op, &[x])])
        })
    }
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
