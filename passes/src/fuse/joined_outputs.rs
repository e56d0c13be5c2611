//! Matches: two products with weights, each with a bias or none, that are added to one another or to the same value, as
//! where attention and MLP are added to the residual at once
//! Becomes: one product of both values side by side, with both weights side by side
//! Exact: up to the order of summation
//! Declines when: something else reads a product, or dims are not known to be alike

use super::stored_product::{StoredProduct, bias_sum, product_before};
use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::ir::shape::Dim;

pub(super) struct JoinedOutputs;

impl GraphRule for JoinedOutputs {
    fn name(&self) -> &'static str {
        "joined_outputs"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            if let (Some(a), Some(b)) = (summand(w, node, 0), summand(w, node, 1)) {
                return joined(w, &a, &b).map(|sum| vec![sum]);
            }
            let b = summand(w, node, 1)?;
            let (a, residual) = with_residual(w, node)?;
            let sum = joined(w, &a, &b)?;
            let residual = w.current(residual);
            Some(vec![w.patch.add(residual, sum)])
        })
    }
}

/// The product that an inner sum adds to what is no product, and that.
fn with_residual(w: &Sweep<'_>, sum: &Node) -> Option<(StoredProduct, ValueId)> {
    let inner =
        sum.input(0).filter(|inner| w.graph.value(*inner).uses.len() == 1 && w.is_untouched(*inner))?;
    let add = w.graph.made_by(inner, "Add")?;
    let found = [1, 0].into_iter().find_map(|slot| Some((summand(w, add, slot)?, add.input(1 - slot)?)))?;
    let alike = |value: ValueId| w.graph.value(value).ty.shape == w.graph.value(inner).ty.shape;
    (alike(found.1) && alike(found.0.y)).then_some(found)
}

fn joined(w: &mut Sweep<'_>, a: &StoredProduct, b: &StoredProduct) -> Option<ValueId> {
    let dtypes = [a, b].map(|one| w.graph.value(one.weight).ty.dtype);
    let leading = |one: &StoredProduct| {
        let dims = w.graph.value(one.x).ty.shape.as_deref()?;
        let dims = &dims[..dims.len().checked_sub(1)?];
        dims.iter().all(|dim| *dim != Dim::Unknown).then(|| dims.to_vec())
    };
    let fits = dtypes[0] == dtypes[1] && a.rows == b.rows && leading(a)? == leading(b)?;
    if !fits {
        return None;
    }
    let values: Vec<ValueId> = [a, b].iter().flat_map(|one| sides(w, one.x)).collect();
    let p = &mut w.patch;
    let last = p.rank(values[0]) as i64 - 1;
    let x = p.concat(&values, last);
    let weight = p.concat(&[a.weight, b.weight], 1);
    let bias = bias_sum(p, a.bias, b.bias);
    Some(p.linear(x, weight, bias))
}

/// What stands side by side in a value that nothing else reads.
fn sides(w: &Sweep<'_>, x: ValueId) -> Vec<ValueId> {
    let rank = w.graph.value(x).ty.rank().unwrap_or_default() as i64;
    let is_alone = w.graph.value(x).uses.len() == 1 && w.is_untouched(x);
    let concat = w.graph.made_by(x, "Concat").filter(|_| is_alone);
    match concat.filter(|node| matches!(node.op.int("axis"), Some(axis) if axis == -1 || axis == rank - 1)) {
        Some(node) => node.inputs.iter().flatten().map(|side| w.current(*side)).collect(),
        None => vec![w.current(x)],
    }
}

/// What is added, where it is such a product and nothing else reads it or what it has before its bias.
fn summand(w: &Sweep<'_>, sum: &Node, slot: usize) -> Option<StoredProduct> {
    let graph = w.graph;
    let value = sum.input(slot).filter(|value| sum.op.is("Add") && w.is_untouched(*value))?;
    let found = product_before(graph, value).filter(|found| !found.is_widened)?;
    let is_alone = |value: ValueId| graph.value(value).uses.len() == 1;
    (is_alone(value) && is_alone(found.product)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::JoinedOutputs;
    use crate::fuse::tests::after;
    use crate::ir::text::{parse, print};
    use crate::serving_graph::join_weights::as_inputs;

    fn text(read: &str) -> String {
        with_sums(read, "%s = Add(%ym, %ya)\n  %z = Add(%s, %x)")
    }

    fn with_sums(read: &str, sums: &str) -> String {
        format!(
            r#"graph "g" {{
  input %x: f32[batch, time, 4]
  input %a: f32[batch, time, 2]
  input %m: f32[batch, time, 3]
  weight %o: f32[4, 2] = random(1)
  weight %d: f32[4, 3] = random(2)
  weight %b: f32[4] = [1.0, -1.0, 0.5, 0.0]
  weight %c: f32[4] = [0.5, 0.0, 0.25, 2.0]
  %to = Transpose(%o) {{perm: [1, 0]}}
  %td = Transpose(%d) {{perm: [1, 0]}}
  %pa = MatMul(%a, %to)
  %pm = MatMul(%m, %td)
  %ya = Add(%pa, %b)
  %ym = Add(%pm, %c)
  {sums}
  output "z" %z
  output "y" %{read}
}}"#
        )
    }

    const INPUTS: [(&str, &[usize]); 3] = [("x", &[2, 3, 4]), ("a", &[2, 3, 2]), ("m", &[2, 3, 3])];

    #[test]
    fn what_attention_and_mlp_add_is_one_product() {
        let joined = after(&JoinedOutputs, &text("z"), &INPUTS);
        insta::assert_snapshot!(joined);
        let mut graph = parse(&joined).expect("a graph");
        as_inputs(&mut graph).expect("a patch");
        let mut names: Vec<&str> =
            graph.inputs().iter().map(|input| graph.value(*input).name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "c&b", "d|o", "m", "x"]);
    }

    #[test]
    fn what_stands_side_by_side_already_is_put_so_once() {
        let text = text("z").replace(
            "input %a: f32[batch, time, 2]",
            "input %c1: f32[batch, time, 1]\n  %a = Concat(%c1, %c1) {axis: -1}",
        );
        let inputs = [("x", &[2, 3, 4][..]), ("c1", &[2, 3, 1]), ("m", &[2, 3, 3])];
        insta::assert_snapshot!(after(&JoinedOutputs, &text, &inputs));
    }

    #[test]
    fn a_residual_may_stand_between() {
        let sums = "%s = Add(%x, %ya)\n  %z = Add(%s, %ym)";
        insta::assert_snapshot!(after(&JoinedOutputs, &with_sums("z", sums), &INPUTS));
        let text = with_sums("s", sums);
        assert_eq!(after(&JoinedOutputs, &text, &INPUTS), print(&parse(&text).expect("a graph")));
    }

    #[test]
    fn a_product_that_is_read_elsewhere_stays() {
        for read in ["ya", "pa"] {
            let text = text(read);
            assert_eq!(after(&JoinedOutputs, &text, &INPUTS), print(&parse(&text).expect("a graph")));
        }
    }
}
