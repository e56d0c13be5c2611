//! Matches: `Transpose(Transpose(x, a), b)`
//! Becomes: `Transpose(x, a ∘ b)`, or `x` where that moves nothing
//! Exact: yes
//! Declines when: the outer one turns a right factor of a `MatMul` (`key_transpose` sees to those)

use super::GraphRule;
use crate::ir::graph::Graph;
use crate::ir::op::Op;
use crate::ir::patch::{Applied, Patch, PatchError};

pub(super) struct TransposeTranspose;

impl GraphRule for TransposeTranspose {
    fn name(&self) -> &'static str {
        "transpose_transpose"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mut patch = Patch::new(graph, self.name());
        let mut found = false;
        for (_, node) in graph.nodes().filter(|(_, n)| n.op.is("Transpose")) {
            let inner = node.input(0).and_then(|v| graph.made_by(v, "Transpose"));
            let Some((inner, x)) = inner.and_then(|n| Some((n, n.input(0)?))) else { continue };
            if super::key_transpose::is_turned_key(graph, node) {
                continue;
            }
            let Some((outer_perm, inner_perm)) = node.op.ints("perm").zip(inner.op.ints("perm")) else {
                continue;
            };
            let perm: Vec<i64> =
                outer_perm.iter().filter_map(|i| inner_perm.get(*i as usize).copied()).collect();
            let moves = perm.iter().enumerate().any(|(i, p)| *p != i as i64);
            let new = match moves {
                true => patch.node(Op::new("Transpose").with("perm", perm.as_slice()), &[x]),
                false => x,
            };
            patch.replace(node.outputs[0], new);
            found = true;
        }
        let change = patch.finish();
        if !found {
            return Ok(None);
        }
        graph.apply(change).map(Some)
    }
}
