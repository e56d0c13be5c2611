//! Matches: −softplus(−x) as the decay of `LinearAttention`, with reshapes between
//! Becomes: log(sigmoid(x)), a kernel less
//! Exact: yes, up to rounding of the exponential, which is all that the operator reads of it. Where the sigmoid is 0
//! in f32 the logarithm is −∞, and the exponential 0 as before
//! Declines when: anything else reads it, such as a sum of log decays, or x is not f32

use crate::canon::{GraphRule, rewrite_matches};
use crate::ir::graph::{Graph, Use, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::pattern::Pat;
use dijiang_format::dtype::DType;

pub(super) struct LogSigmoid;

impl GraphRule for LogSigmoid {
    fn name(&self) -> &'static str {
        "log_sigmoid"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let soft = Pat::op("Softplus", [Pat::op("Neg", [Pat::var("x")])]);
        let decay = Pat::op("Neg", [soft]).bind("decay");
        rewrite_matches(graph, self.name(), &decay, |w, found| {
            let x = found.get("x")?;
            if w.graph.value(x).ty.dtype != Some(DType::F32) || !is_decay(w.graph, found.get("decay")?) {
                return None;
            }
            let x = w.current(x);
            let open = w.patch.sigmoid(x);
            Some(vec![w.patch.log(open)])
        })
    }
}

fn is_decay(graph: &Graph, value: ValueId) -> bool {
    graph.value(value).uses.iter().all(|user| {
        let Use::Node { node, slot } = *user else { return false };
        let node = graph.node(node);
        match node.op.name() {
            "Reshape" | "Transpose" if slot == 0 => is_decay(graph, node.outputs[0]),
            "LinearAttention" => slot == 4,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::LogSigmoid;
    use crate::fuse::tests::after;

    fn text(read: &str) -> String {
        format!(
            r#"graph "g" {{
  input %q: f32[2, 1, 6]
  input %s: f32[2, 2, 3, 3]
  input %x: f32[2, 2, 1]
  %a = Neg(%x)
  %b = Softplus(%a)
  %c = Neg(%b)
  %d = Transpose(%c) {{perm: [0, 2, 1]}}
  %y, %t = com.microsoft.LinearAttention(%q, %q, %q, %s, %d) {{kv_num_heads: 2, q_num_heads: 2, scale: 1.0, update_rule: "gated"}}
  output "y" %y
  output "t" {read}
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 3] = [("q", &[2, 1, 6]), ("s", &[2, 2, 3, 3]), ("x", &[2, 2, 1])];

    #[test]
    fn a_decay_is_the_logarithm_of_a_sigmoid() {
        insta::assert_snapshot!(after(&LogSigmoid, &text("%t"), &INPUTS));
    }

    #[test]
    fn a_log_decay_that_is_read_stays() {
        insta::assert_snapshot!(after(&LogSigmoid, &text("%d"), &INPUTS));
    }
}
