//! Matches: a transpose that moves nothing but dims of 1, as all of one token are
//! Becomes: `Reshape`, which moves no memory
//! Exact: yes
//! Declines when: more than one other dim is no number

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct UnitTranspose;

impl GraphRule for UnitTranspose {
    fn name(&self) -> &'static str {
        "unit_transpose"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.is("Transpose") {
            true => reshaped(w, node),
            false => None,
        })
    }
}

fn reshaped(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let shape = w.graph.value(node.input(0)?).ty.shape.clone()?;
    let perm: Vec<usize> = node.op.ints("perm")?.iter().map(|axis| *axis as usize).collect();
    let moved: Vec<usize> = perm.iter().copied().filter(|axis| shape[*axis] != Dim::Known(1)).collect();
    if !moved.is_sorted() {
        return None;
    }
    let size = |(place, axis): (usize, &usize)| match shape[*axis].known() {
        Some(n) => n as i64,
        None if place == *axis => 0,
        None => -1,
    };
    let target: Vec<i64> = perm.iter().enumerate().map(size).collect();
    if target.iter().filter(|size| **size == -1).count() > 1 {
        return None;
    }
    let x = w.input(node, 0)?;
    Some(vec![w.patch.reshape(x, &target)])
}

#[cfg(test)]
mod tests {
    use super::UnitTranspose;
    use crate::fuse::tests::after;

    #[test]
    fn only_dims_of_one_move_for_free() {
        insta::assert_snapshot!(after(
            &UnitTranspose,
            r#"graph "g" {
  input %x: f32[batch, 1, 3, 4]
  input %y: f32[batch, 2, 3, 4]
  %a = Transpose(%x) {perm: [0, 2, 1, 3]}
  %b = Transpose(%x) {perm: [1, 0, 2, 3]}
  %c = Transpose(%x) {perm: [0, 1, 3, 2]}
  %d = Transpose(%y) {perm: [0, 2, 1, 3]}
  output "a" %a
  output "b" %b
  output "c" %c
  output "d" %d
}"#,
            &[("x", &[2, 1, 3, 4]), ("y", &[2, 2, 3, 4])],
        ));
    }
}
