//! Matches: a product with a weight whose rows lie together head by head (query, key, value of one head, then those of
//! the next), `[.., heads, parts · dim]`, split into its parts
//! Becomes: a product for each part, with its rows of the weight
//! Exact: yes
//! Declines when: the parts differ in size, something else reads the product, or the weight is no weight

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::serving_graph::join_weights::rows;
use dijiang_format::joined::RowRange;

pub(super) struct HeadParts;

impl GraphRule for HeadParts {
    fn name(&self) -> &'static str {
        "head_parts"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.is("Split") {
            true => apart(w, node),
            false => None,
        })
    }
}

fn apart(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let shape = |value: ValueId| graph.value(value).ty.shape.clone();
    let lone = |value: ValueId| graph.value(value).uses.len() == 1;
    let by_head = node.input(0)?;
    let joined = graph.made_by(by_head, "Reshape").filter(|_| lone(by_head))?.input(0)?;
    let (heads, whole) = (shape(by_head)?, shape(joined)?);
    let ([_, _, Dim::Known(count), Dim::Known(width)], [_, _, Dim::Known(all)]) = (&heads[..], &whole[..])
    else {
        return None;
    };
    let parts = node.outputs.iter().map(|part| shape(*part)?.last()?.known());
    let parts: Vec<u64> = parts.collect::<Option<_>>()?;
    let even = parts.iter().all(|part| *part == parts[0]);
    let over_last = matches!(node.op.int("axis"), Some(-1 | 3));
    if !over_last || !even || !lone(joined) || count * width != *all {
        return None;
    }
    let (product, bias) = match graph.made_by(joined, "Add") {
        Some(add) => (add.input(0)?, Some(add.input(1)?)),
        None => (joined, None),
    };
    let product = graph.made_by(product, "MatMul").filter(|_| lone(product))?;
    let transposed = graph.made_by(product.input(1)?, "Transpose")?;
    let weight = transposed.input(0)?;
    let is_weight =
        |value: ValueId, rank| graph.value(value).is_weight && graph.value(value).ty.rank() == Some(rank);
    if transposed.op.ints("perm") != Some(&[1, 0])
        || !is_weight(weight, 2)
        || !bias.is_none_or(|b| is_weight(b, 1))
    {
        return None;
    }
    let dim = parts[0] as usize;
    let x = w.input(product, 0)?;
    let part = |i: usize| {
        let taken = RowRange { begin: i * dim, end: (i + 1) * dim, every: *width as usize };
        let own = rows(&mut w.patch, weight, taken);
        let bias = bias.map(|bias| rows(&mut w.patch, bias, taken));
        let y = w.patch.linear(x, own, bias);
        w.patch.reshape(y, &[0, 0, *count as i64, dim as i64])
    };
    Some((0..parts.len()).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::HeadParts;
    use crate::fuse::tests::after;

    fn text(sizes: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, time, 2]
  weight %w: f32[8, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
  weight %b: f32[8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  const %by_head: i64[4] = [0, 0, 2, 4]
  const %sizes: i64[2] = {sizes}
  %t = Transpose(%w) {{perm: [1, 0]}}
  %p = MatMul(%x, %t)
  %s = Add(%p, %b)
  %h = Reshape(%s, %by_head)
  %q, %k = Split(%h, %sizes) {{axis: -1}}
  output "q" %q
  output "k" %k
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 3, 2])];

    #[test]
    fn parts_of_all_heads_lie_together() {
        insta::assert_snapshot!(after(&HeadParts, &text("[2, 2]"), &INPUTS));
    }

    #[test]
    fn uneven_parts_stay() {
        insta::assert_snapshot!(after(&HeadParts, &text("[1, 3]"), &INPUTS));
    }
}
