//! Matches: `Flatten`
//! Becomes: `Reshape` to two dims, where one of them is known or copied
//! Exact: yes

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct Flatten;

impl GraphRule for Flatten {
    fn name(&self) -> &'static str {
        "flatten"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let target = target(w.graph, node)?;
            let x = w.input(node, 0)?;
            Some(vec![w.patch.reshape(x, &target)])
        })
    }
}

fn target(graph: &Graph, node: &Node) -> Option<[i64; 2]> {
    if !node.op.is("Flatten") {
        return None;
    }
    let axis = node.op.int("axis")?;
    match graph.value(node.outputs[0]).ty.shape.as_deref() {
        Some([_, Dim::Known(n)]) if *n > 0 => Some([-1, *n as i64]),
        Some([Dim::Known(n), _]) if *n > 0 => Some([*n as i64, -1]),
        _ if axis == 1 => Some([0, -1]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn flatten_becomes_reshape_where_a_dim_is_known() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 2, 4]
  %a = Flatten(%x) {axis: 1}
  %b = Flatten(%x) {axis: 2}
  %c = Flatten(%x) {axis: 4}
  %d = Flatten(%x) {axis: -1}
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
}"#
        ));
    }
}
