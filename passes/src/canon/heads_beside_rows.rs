//! Matches: `Transpose` by `[1, 0, 2]` or `[1, 2, 0]` of `Reshape(x, [tokens, batch · heads, dim])`, where x is
//! `[tokens, batch, heads · dim]`, as `torch.nn.MultiheadAttention` lays out its heads
//! Becomes: `Reshape` to `[batch · heads, …]` of the heads by themselves, `[batch, heads, tokens, dim]` or `[batch, heads, dim, tokens]`
//! Exact: yes
//! Declines when: the number of heads is not known, or the rows of x are no batch

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct HeadsBesideRows;

impl GraphRule for HeadsBesideRows {
    fn name(&self) -> &'static str {
        "heads_beside_rows"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match (node.op.name(), node.op.ints("perm")?) {
            ("Transpose", [1, 0, 2]) => folded(w, node, [1, 2, 0, 3]),
            ("Transpose", [1, 2, 0]) => folded(w, node, [1, 2, 3, 0]),
            _ => None,
        })
    }
}

fn folded(w: &mut Sweep<'_>, node: &Node, perm: [i64; 4]) -> Option<Vec<ValueId>> {
    let Beside { x, heads, dim } = beside(w.graph, node.input(0)?)?;
    let x = w.current(x);
    let apart = w.patch.reshape(x, &[0, 0, heads as i64, dim as i64]);
    let turned = w.patch.transpose(apart, &perm);
    // One of the two is the dim of a head, and the other the tokens.
    let (leading, last) = (w.patch.ints(&[-1]), w.patch.shape_of(turned, 2, 4));
    let target = w.patch.concat(&[leading, last], 0);
    Some(vec![w.patch.reshape_to(turned, target)])
}

/// `[tokens, batch, heads · dim]`, whose heads were put beside the rows of the batch.
struct Beside {
    x: ValueId,
    heads: u64,
    dim: u64,
}

fn beside(graph: &Graph, value: ValueId) -> Option<Beside> {
    let node = graph.made_by(value, "Reshape")?;
    let x = node.input(0)?;
    let shape = |v: ValueId| graph.value(v).ty.shape.as_deref();
    let ([tokens, batch, width], [same, _, dim]) = (shape(x)?, shape(value)?) else { return None };
    let (width, dim) = (width.known()?, dim.known().filter(|dim| *dim > 0)?);
    let is_split = width.is_multiple_of(dim) && width > dim;
    let keeps = tokens == same && *tokens != Dim::Unknown && batch.known() != Some(0);
    (is_split && keeps).then_some(Beside { x, heads: width / dim, dim })
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::after;

    const TEXT: &str = r#"graph "g" {
  input %x: f32[time, batch, 32]
  const %to: i64[3] = [0, -1, 8]
  %beside = Reshape(%x, %to)
  %q = Transpose(%beside) {perm: [1, 0, 2]} "q"
  %k = Transpose(%beside) {perm: [1, 2, 0]} "k"
  %scores = MatMul(%q, %k) "scores"
  %weights = Softmax(%scores) {axis: -1} "weights"
  %mixed = MatMul(%weights, %q) "mixed"
  %back = Transpose(%mixed) {perm: [1, 0, 2]} "back"
  const %joined: i64[3] = [0, -1, 32]
  %y = Reshape(%back, %joined) "y"
  output "y" %y
}"#;

    #[test]
    fn heads_come_before_the_tokens() {
        insta::assert_snapshot!(after(TEXT));
    }

    #[test]
    fn one_head_stays_as_it_is() {
        assert!(after(&TEXT.replace("[0, -1, 8]", "[0, -1, 32]")).contains("perm: [1, 2, 0]"));
    }
}
