//! Matches: `Unsqueeze(Unsqueeze(x, a), b)`, and `Squeeze(Unsqueeze(x, a), a)`
//! Becomes: one `Unsqueeze`; `x`
//! Exact: yes

use super::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct UnsqueezeUnsqueeze;

impl GraphRule for UnsqueezeUnsqueeze {
    fn name(&self) -> &'static str {
        "unsqueeze_unsqueeze"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let middle = node.input(0).filter(|v| w.is_untouched(*v))?;
            let x = w.graph.made_by(middle, "Unsqueeze")?.input(0)?;
            let first = new_axes(w.graph, w.graph.made_by(middle, "Unsqueeze")?, middle)?;
            if node.op.is("Squeeze") {
                return (axes(node, w.graph.value(middle).ty.rank()?)? == first).then(|| vec![w.current(x)]);
            }
            if !node.op.is("Unsqueeze") {
                return None;
            }
            let second = new_axes(w.graph, node, node.outputs[0])?;
            let x = w.current(x);
            Some(vec![w.patch.unsqueeze(x, &joined(&first, &second))])
        })
    }
}

/// The axes of a node, counted from the front of `rank`, sorted.
fn axes(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let axes = node.op.ints("axes")?.iter().map(|a| resolve_axis(*a, rank).ok());
    let mut axes: Vec<usize> = axes.collect::<Option<_>>()?;
    axes.sort_unstable();
    Some(axes)
}

fn new_axes(graph: &Graph, node: &Node, output: ValueId) -> Option<Vec<usize>> {
    axes(node, graph.value(output).ty.rank()?)
}

/// Axes inserted first move back by the ones inserted before them later.
fn joined(first: &[usize], second: &[usize]) -> Vec<i64> {
    let mut all = second.to_vec();
    for axis in first {
        let mut place = *axis;
        for new in second {
            if *new <= place {
                place += 1;
            }
        }
        all.push(place);
    }
    all.sort_unstable();
    all.into_iter().map(|a| a as i64).collect()
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    #[test]
    fn new_axes_join_and_cancel() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[a, b]
  %p = Unsqueeze(%x) {axes: [1]}
  %q = Unsqueeze(%p) {axes: [0, -1]}
  %r = Squeeze(%p) {axes: [1]}
  %s = Unsqueeze(%x) {axes: [0]}
  %t = Unsqueeze(%s) {axes: [0]}
  output "q" %q
  output "r" %r
  output "t" %t
}"#
        ));
    }
}
