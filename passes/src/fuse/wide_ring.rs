//! Matches: one token's softmax over a ring of many slots in f16, as products, a mask and `Softmax`
//! Becomes: `MultiHeadAttention` over keys and values as they lie in the ring, with the mask as its bias
//! Exact: yes, up to rounding
//! Declines when: query heads share key heads, which the operator does not know, or slots are few, where it is no faster

use crate::canon::{GraphRule, Sweep, rewrite_matches};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::pattern::{LAST_OF_FOUR, Match, Pat};
use dijiang_format::dtype::DType;

pub(super) struct WideRing;

/// An H200 takes 56.5 us for 260 slots and 128 rows where it takes 73.5 for products, 41.7 and 25.7 for 68
/// (`time_window.py`).
const LEAST_SLOTS: u64 = 128;

impl GraphRule for WideRing {
    fn name(&self) -> &'static str {
        "wide_ring"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let keys = Pat::op("Transpose", [Pat::var("keys")]).with_ints("perm", &[0, 1, 3, 2]);
        let product = Pat::op("MatMul", [Pat::var("queries"), keys]);
        let scaled = Pat::op("Mul", [product, Pat::Scalar.bind("scale")]);
        let masked = Pat::op("Add", [scaled, Pat::var("mask")]);
        let weights = Pat::op("Softmax", [masked]).with_int_of("axis", LAST_OF_FOUR);
        let read = Pat::op("MatMul", [weights, Pat::var("values")]).bind("read");
        rewrite_matches(graph, self.name(), &read, fused)
    }
}

fn fused(w: &mut Sweep<'_>, found: &Match) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let dims = |name: &str| graph.value(found.get(name)?).ty.shape.as_deref();
    let &[_, Dim::Known(heads), Dim::Known(1), Dim::Known(dim)] = dims("queries")? else { return None };
    let &[_, Dim::Known(own), Dim::Known(slots), Dim::Known(width)] = dims("keys")? else { return None };
    let fits = (own, width) == (heads, dim)
        && dims("values") == dims("keys")
        && matches!(dims("mask")?, [_, Dim::Known(1), Dim::Known(1), Dim::Known(last)] if *last == slots)
        && graph.value(found.get("read")?).ty.dtype == Some(DType::F16);
    if !fits || slots < LEAST_SLOTS || !found.is_alone(graph) {
        return None;
    }
    let scale = graph.as_scalar(found.get("scale")?)? as f32;
    let [queries, keys, values, mask] =
        ["queries", "keys", "values", "mask"].map(|name| found.get(name).map(|value| w.current(value)));
    let packed = w.patch.reshape(queries?, &[0, 1, (heads * dim) as i64]);
    let op = Op::in_domain("com.microsoft", "MultiHeadAttention");
    let op = op.with("num_heads", heads as i64).with("scale", scale);
    let read = w.patch.node_outputs(op, &[Some(packed), keys, values, None, None, mask], 1);
    Some(vec![w.patch.reshape(read[0], &[0, heads as i64, 1, dim as i64])])
}

#[cfg(test)]
mod tests {
    use super::WideRing;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};

    fn text(slots: u64, dtype: &str, heads: u64) -> String {
        format!(
            r#"graph "g" {{
  input %q: {dtype}[batch, 2, 1, 4]
  input %k: {dtype}[batch, {heads}, {slots}, 4]
  input %v: {dtype}[batch, {heads}, {slots}, 4]
  input %m: {dtype}[batch, 1, 1, {slots}]
  const %scale: {dtype}[] = [0.5]
  %t = Transpose(%k) {{perm: [0, 1, 3, 2]}}
  %s = MatMul(%q, %t)
  %c = Mul(%s, %scale)
  %o = Add(%c, %m)
  %p = Softmax(%o) {{axis: -1}}
  %y = MatMul(%p, %v)
  output "y" %y
}}"#
        )
    }

    fn found(text: &str, slots: usize, heads: usize) -> String {
        let ring: &[usize] = &[3, heads, slots, 4];
        let inputs = [("q", &[3, 2, 1, 4][..]), ("k", ring), ("v", ring), ("m", &[3, 1, 1, slots])];
        after(&WideRing, text, &inputs)
    }

    #[test]
    fn many_slots_are_one_operator() {
        insta::assert_snapshot!(found(&text(130, "f16", 2), 130, 2));
    }

    #[test]
    fn few_slots_another_type_or_shared_heads_stay() {
        for (slots, dtype, heads) in [(40, "f16", 2), (130, "f32", 2), (130, "f16", 1)] {
            let text = text(slots, dtype, heads);
            let same = print(&parse(&text).expect("a graph"));
            assert_eq!(found(&text, slots as usize, heads as usize), same);
        }
    }
}
