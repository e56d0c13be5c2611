//! Matches: a product with a weight of what heads mix, `linear + share · (window - linear)`, share the sigmoid of a
//! stored number per head, with padding made 0 or not
//! Becomes: a product of both side by side, whose weight has its columns multiplied by the share and by what it leaves
//! Exact: up to the order of summation; a weight is rounded after it is multiplied
//! Declines when: something else reads the mixture, heads do not lie packed in what is read, or the weight is so large that
//! to read it twice takes longer than to mix

use super::stored_product::{StoredProduct, stored_product};
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;
use crate::pattern::{Match, Pat, matches};
use crate::serving_graph::join_weights::{is_stored, shares, uncast};

pub(super) struct FoldedShares;

/// What a GPU reads in the four microseconds that three operators on one token take.
const MOST_BYTES: u64 = 12 << 20;

impl GraphRule for FoldedShares {
    fn name(&self) -> &'static str {
        "folded_shares"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let mixed = mixed();
        rewrite_nodes(graph, self.name(), |w, node| {
            let product =
                stored_product(w.graph, node).filter(|found| is_small_weight(w.graph, found.weight))?;
            let found = matches(w.graph, &mixed, product.x)?;
            folded(w, &product, &found).map(|y| vec![y])
        })
    }
}

fn mixed() -> Pat {
    let linear = || Pat::var("linear");
    let apart = Pat::op("Sub", [Pat::var("window"), linear()]);
    let moved = Pat::op("Mul", [apart, Pat::var("share")]);
    let mixed = || Pat::op("Add", [linear(), moved.clone()]).bind("mixed");
    let masked = Pat::op("Mul", [mixed(), Pat::var("tokens")]);
    let read = Pat::one_of([("masked", masked), ("all", mixed())]);
    Pat::op("Reshape", [read]).bind("packed")
}

fn is_small_weight(graph: &Graph, weight: ValueId) -> bool {
    let ty = &graph.value(weight).ty;
    let elements = ty.shape.iter().flatten().map(Dim::known).product::<Option<u64>>();
    let bytes = ty.dtype.and_then(|dtype| Some(elements? * dtype.size() as u64));
    graph.value(weight).is_weight && bytes.is_some_and(|bytes| bytes <= MOST_BYTES)
}

fn folded(w: &mut Sweep<'_>, product: &StoredProduct, found: &Match) -> Option<ValueId> {
    let graph = w.graph;
    let shape = |value: ValueId| graph.value(value).ty.shape.as_deref();
    let (linear, window, share) = (found.get("linear")?, found.get("window")?, found.get("share")?);
    let [.., Dim::Known(heads), Dim::Known(dim)] = *shape(found.get("mixed")?)? else { return None };
    let packed = shape(product.x)?.last()?.known()?;
    let logits = logits(graph, share, heads)?;
    let is_alone = graph.value(product.x).uses.len() == 1 && found.is_alone(graph);
    let alike = shape(linear) == shape(window) && shape(linear) == shape(found.get("mixed")?);
    if !is_alone || !alike || packed != heads * dim {
        return None;
    }
    let reshape = graph.made_by(product.x, "Reshape")?;
    let target = w.input(reshape, 1)?;
    let tokens = found.get("tokens").map(|tokens| w.current(tokens));
    let values = [window, linear].map(|value| {
        let value = w.current(value);
        let value = tokens.map_or(value, |tokens| w.patch.mul(value, tokens));
        w.patch.reshape_to(value, target)
    });
    let dtype = w.patch.ty(product.weight).dtype?;
    let weights = [false, true].map(|is_rest| {
        let share = shares(&mut w.patch, logits, dim as i64, is_rest);
        let share = w.patch.cast(share, dtype);
        w.patch.mul(product.weight, share)
    });
    let last = w.patch.rank(values[0]) as i64 - 1;
    let x = w.patch.concat(&values, last);
    let weight = w.patch.concat(&weights, 1);
    Some(w.patch.linear(x, weight, None))
}

/// The stored numbers, one for each head, whose sigmoid is `share`, `[.., heads, 1]`.
fn logits(graph: &Graph, share: ValueId, heads: u64) -> Option<ValueId> {
    let shape = |value: ValueId| graph.value(value).ty.shape.as_deref();
    let [leading @ .., Dim::Known(own), Dim::Known(1)] = shape(share)? else { return None };
    let spread = graph.made_by(share, "Unsqueeze")?.input(0)?;
    let logits = graph.made_by(uncast(graph, spread), "Sigmoid")?.input(0)?;
    let is_one = leading.iter().all(|dim| *dim == Dim::Known(1));
    let fits = graph.value(logits).is_weight && shape(logits)? == [Dim::Known(heads)];
    (is_one && fits && is_stored(graph, logits) && *own == heads).then_some(logits)
}

#[cfg(test)]
mod tests {
    use super::FoldedShares;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};
    use crate::serving_graph::join_weights::as_inputs;

    fn text(read: &str, packed: &str) -> String {
        format!(
            r#"graph "g" {{
  input %window: f32[batch, time, 2, 3]
  input %linear: f32[batch, time, 2, 3]
  input %tokens: f32[batch, time, 1, 1]
  weight %o: f32[4, 6] = random(1)
  weight %mix: f32[2] = [3.0, -1.0]
  const %packed: i64[3] = [0, 0, 6]
  %g = Sigmoid(%mix)
  %share = Unsqueeze(%g) {{axes: [1]}}
  %apart = Sub(%window, %linear)
  %moved = Mul(%apart, %share)
  %mixed = Add(%linear, %moved)
  %masked = Mul(%mixed, %tokens)
  %x = Reshape(%{packed}, %packed)
  %t = Transpose(%o) {{perm: [1, 0]}}
  %y = MatMul(%x, %t)
  output "y" %y
  output "read" %{read}
}}"#
        )
    }

    const SHAPE: &[usize] = &[2, 3, 2, 3];
    const INPUTS: [(&str, &[usize]); 3] = [("window", SHAPE), ("linear", SHAPE), ("tokens", &[2, 3, 1, 1])];

    #[test]
    fn what_heads_mix_by_goes_into_the_weight() {
        let found = after(&FoldedShares, &text("y", "mixed"), &INPUTS);
        insta::assert_snapshot!(found);
        let mut graph = parse(&found).expect("a graph");
        as_inputs(&mut graph).expect("a patch");
        let names = graph.inputs().iter().map(|input| graph.value(*input).name.as_str());
        assert!(names.into_iter().any(|name| name == "o%mix|o%-mix"));
    }

    #[test]
    fn padding_is_made_nothing_of_both() {
        insta::assert_snapshot!(after(&FoldedShares, &text("y", "masked"), &INPUTS));
    }

    #[test]
    fn a_name_that_cannot_stand_in_a_join_another_layout_and_a_large_weight_stay() {
        let name = text("y", "masked").replace("%mix:", "%\"a[0]mix\":").replace("(%mix)", "(%\"a[0]mix\")");
        let by_dim =
            text("y", "masked").replace("mix: f32[2] = [3.0, -1.0]", "mix: f32[3] = [3.0, -1.0, 0.5]");
        let by_dim = by_dim.replace("axes: [1]", "axes: [0]");
        let computed =
            text("y", "masked").replace("%g = Sigmoid(%mix)", "%e = Exp(%mix)\n  %g = Sigmoid(%e)");
        // 14 MB, which take longer to read twice than to mix.
        let large = text("y", "masked").replace("%o: f32[4, 6]", "%o: f32[600000, 6]");
        for text in [name, by_dim, computed, large] {
            assert_eq!(after(&FoldedShares, &text, &INPUTS), print(&parse(&text).expect("a graph")));
        }
    }

    #[test]
    fn a_mixture_that_is_read_elsewhere_stays() {
        for read in ["mixed", "moved", "x"] {
            let text = text(read, "masked");
            assert_eq!(after(&FoldedShares, &text, &INPUTS), print(&parse(&text).expect("a graph")));
        }
    }
}
