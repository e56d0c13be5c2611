//! Matches: `MatMul(a, Transpose(x, p))` over `[batch, heads, …]` where p does more than turn the last
//! two axes
//! Becomes: `MatMul(a, Transpose(Transpose(x, p'), [0, 1, 3, 2]))`, so that keys by head have a name
//! Exact: yes

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, Use};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct KeyTranspose;

const TURN: [i64; 4] = [0, 1, 3, 2];

/// The head axis comes from further back: of `[batch, tokens, heads, dim]`, and of `[tokens, batch, heads, dim]`.
const FROM_BEHIND: [&[i64]; 2] = [&[0, 2, 3, 1], &[1, 2, 3, 0]];

impl GraphRule for KeyTranspose {
    fn name(&self) -> &'static str {
        "key_transpose"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let perm = node.op.ints("perm").filter(|p| node.op.is("Transpose") && p.len() == 4)?;
            if !FROM_BEHIND.contains(&perm) || !is_right_factor(w.graph, node) {
                return None;
            }
            let x = w.input(node, 0)?;
            let by_head = w.patch.transpose(x, &[perm[0], perm[1], perm[3], perm[2]]);
            Some(vec![w.patch.transpose(by_head, &TURN)])
        })
    }
}

/// Whether a node turns the last two axes of what is only ever a right factor.
pub(super) fn is_turned_key(graph: &Graph, node: &Node) -> bool {
    node.op.ints("perm") == Some(&TURN) && is_right_factor(graph, node)
}

fn is_right_factor(graph: &Graph, node: &Node) -> bool {
    let uses = &graph.value(node.outputs[0]).uses;
    !uses.is_empty()
        && uses.iter().all(|user| match user {
            Use::Node { node, slot: 1 } => graph.node(*node).op.is("MatMul"),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn keys_get_a_name_and_other_transposes_stay_whole() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %q: f32[batch, 2, time, 4]
  input %k: f32[batch, time, 2, 4]
  %t = Transpose(%k) {perm: [0, 2, 3, 1]}
  %s = MatMul(%q, %t)
  %u = Exp(%k)
  %v = Transpose(%u) {perm: [0, 2, 3, 1]}
  output "scores" %s
  output "whole" %v
}"#
        ));
    }
}
