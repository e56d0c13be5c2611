//! Matches: a product with a weight whose rows lie together head by head (query, key, value of one head, then those of
//! the next), `[.., heads, parts · dim]`, split into its parts
//! Becomes: a product for each part, with its rows of the weight
//! Exact: yes
//! Declines when: the parts differ in size, something else reads the product, or the weight is no weight

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::pattern::{LAST_OF_FOUR, Match, Pat};
use crate::serving_graph::join_weights::rows;
use dijiang_format::joined::RowRange;

pub(super) struct HeadParts;

impl GraphRule for HeadParts {
    fn name(&self) -> &'static str {
        "head_parts"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let transposed = Pat::op("Transpose", [Pat::var("weight")]).with_ints("perm", &[1, 0]);
        let product = Pat::op("MatMul", [Pat::var("x"), transposed]).bind("product");
        let biased = Pat::op("Add", [product.clone(), Pat::var("bias")]);
        let joined = Pat::one_of([("biased", biased), ("plain", product)]).bind("joined");
        let by_head = Pat::op("Reshape", [joined]).bind("by_head");
        let parts = Pat::op("Split", [by_head]).with_int_of("axis", LAST_OF_FOUR);
        rewrite_matches(graph, self.name(), &parts, apart)
    }
}

fn apart(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let shape = |value: ValueId| graph.value(value).ty.shape.as_deref();
    let is_alone = |name: &&str| found.get(name).is_some_and(|value| graph.value(value).uses.len() == 1);
    let (by_head, joined) = (shape(found.get("by_head")?)?, shape(found.get("joined")?)?);
    let ([_, _, Dim::Known(count), Dim::Known(width)], [_, _, Dim::Known(all)]) = (by_head, joined) else {
        return None;
    };
    let split = graph.node(*found.nodes.first()?);
    let parts = split.outputs.iter().map(|part| shape(*part)?.last()?.known());
    let parts: Vec<u64> = parts.collect::<Option<_>>()?;
    let even = parts.iter().all(|part| *part == parts[0]);
    let (weight, bias) = (found.get("weight")?, found.get("bias"));
    let is_weight =
        |value: ValueId, rank| graph.value(value).is_weight && graph.value(value).ty.rank() == Some(rank);
    let fits = even
        && ["by_head", "joined", "product"].iter().all(is_alone)
        && count * width == *all
        && is_weight(weight, 2)
        && bias.is_none_or(|bias| is_weight(bias, 1));
    if !fits {
        return None;
    }
    let dim = parts[0] as usize;
    let x = w.current(found.get("x")?);
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
