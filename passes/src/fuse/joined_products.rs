//! Matches: three products or more of one value with weights, each with a bias or none with one
//! Becomes: one product with the weights one after the other, and a split
//! Exact: yes, up to the order of summation, and to rounding of a bias that was added in f32
//! Declines when: there are two, where the split costs what a product saves. Where there are more weights than a join
//! may name, there are several joins

use super::stored_product::{StoredProduct, products_of, stored_product};
use crate::canon::{GraphRule, rewrite_nodes};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};
use crate::serving_graph::join_weights::count;
use dijiang_format::dtype::DType;
use dijiang_format::joined::MOST_PARTS;

pub(super) struct JoinedProducts;

impl GraphRule for JoinedProducts {
    fn name(&self) -> &'static str {
        "joined_products"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let first = stored_product(w.graph, node)?;
            let runs = runs(w.graph, beside(w.graph, &first));
            let is_first = |run: &[StoredProduct]| {
                run.iter().find(|one| !one.is_widened).map(|one| one.y) == Some(first.y)
            };
            let all = runs.into_iter().find(|run| is_first(run) && run.len() >= LEAST)?;
            let dtype = w.graph.value(first.y).ty.dtype?;
            let weights: Vec<ValueId> = all.iter().map(|one| one.weight).collect();
            let biases = all.iter().filter_map(|one| one.bias);
            let biases: Vec<ValueId> = biases.map(|bias| w.patch.cast(bias, dtype)).collect();
            let weight = w.patch.concat(&weights, 0);
            let bias = (!biases.is_empty()).then(|| w.patch.concat(&biases, 0));
            let x = w.current(first.x);
            let y = w.patch.linear(x, weight, bias);
            let sizes: Vec<i64> = all.iter().map(|one| one.rows).collect();
            let axis = w.patch.rank(y) as i64 - 1;
            let parts = w.patch.split(y, axis, &sizes);
            for (one, part) in all.iter().zip(&parts) {
                let part = if one.is_widened { w.patch.cast(*part, DType::F32) } else { *part };
                w.stand_for(one.y, part);
            }
            // The first stands for itself by now.
            None
        })
    }
}

const LEAST: usize = 3;

/// One after the other, in runs of as many weights as a join may name.
fn runs(graph: &Graph, all: Vec<StoredProduct>) -> Vec<Vec<StoredProduct>> {
    let (mut runs, mut parts): (Vec<Vec<StoredProduct>>, usize) = (Vec::new(), 0);
    for one in all {
        let own = count(graph, one.weight).max(one.bias.map_or(0, |bias| count(graph, bias)));
        match runs.last_mut().filter(|_| parts + own <= MOST_PARTS) {
            Some(run) => {
                run.push(one);
                parts += own;
            }
            None => {
                runs.push(vec![one]);
                parts = own;
            }
        }
    }
    runs
}

/// The products that can be one with this one, itself among them, in the order of their reading.
fn beside(graph: &Graph, one: &StoredProduct) -> Vec<StoredProduct> {
    let readers = products_of(graph, one.x);
    // A bias that is added late goes with those that are not, where there are any.
    let has_biased = readers.iter().any(|other| other.bias.is_some());
    let late = |other: StoredProduct| if has_biased { other.with_late_bias(graph) } else { other };
    let readers = readers.into_iter().map(late);
    let dtype = |value: ValueId| graph.value(value).ty.dtype;
    let fits = |other: &StoredProduct| {
        other.bias.is_some() == one.bias.is_some() && dtype(other.weight) == dtype(one.weight)
    };
    readers.filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::JoinedProducts;
    use crate::canon::GraphRule as _;
    use crate::fuse::tests::after;
    use crate::ir::graph::Graph;
    use crate::ir::text::{parse, print};
    use crate::serving_graph::join_weights::as_inputs;
    use dijiang_format::joined::{self, MOST_PARTS};
    use std::fmt::Write as _;

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 3, 2])];

    #[test]
    fn three_products_of_one_value_are_one() {
        insta::assert_snapshot!(after(
            &JoinedProducts,
            r#"graph "g" {
  input %x: f32[batch, time, 2]
  weight %q: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
  weight %k: f32[1, 2] = [5.0, 6.0]
  weight %v: f32[1, 2] = [7.0, 8.0]
  %tq = Transpose(%q) {perm: [1, 0]}
  %tk = Transpose(%k) {perm: [1, 0]}
  %tv = Transpose(%v) {perm: [1, 0]}
  %a = MatMul(%x, %tq)
  %b = MatMul(%x, %tk)
  %c = MatMul(%x, %tv)
  output "a" %a
  output "b" %b
  output "c" %c
}"#,
            &INPUTS,
        ));
    }

    /// Experts that read one value.
    fn experts(count: usize) -> Graph {
        let mut text = "graph \"g\" {\n  input %x: f32[batch, time, 2]\n".to_owned();
        for i in 0..count {
            let _ = write!(
                text,
                "  weight %w{i}: f32[1, 2] = random({i})
  %t{i} = Transpose(%w{i}) {{perm: [1, 0]}}
  %y{i} = MatMul(%x, %t{i})
  output \"y{i}\" %y{i}\n"
            );
        }
        parse(&format!("{text}}}")).expect("a graph")
    }

    #[test]
    fn more_products_than_a_join_may_name_are_several_joins() {
        let mut graph = experts(2 * MOST_PARTS + 2);
        let inputs = [("x", crate::testing::noise(&[2, 3, 2], 1))];
        let before = crate::testing::run(&graph, &inputs);
        JoinedProducts.sweep(&mut graph).expect("a patch");
        assert_eq!(crate::testing::run(&graph, &inputs), before);
        let products = |graph: &Graph| graph.nodes().filter(|(_, node)| node.op.is("MatMul")).count();
        assert_eq!(products(&graph), 4, "two joins, and two that are left");
        let joins = print(&graph);
        assert!(JoinedProducts.sweep(&mut graph).expect("no patch").is_none(), "{joins}");
        // All of them have a name, so that no call joins weights again.
        as_inputs(&mut graph).expect("a patch");
        assert!(graph.nodes().all(|(_, node)| !node.op.is("Concat")));
        let names = graph.inputs().iter().map(|v| joined::parse(&graph.value(*v).name).len());
        assert_eq!(names.filter(|parts| *parts == MOST_PARTS).count(), 2);
    }

    /// As gates have it.
    #[test]
    fn a_bias_that_is_added_in_f32_joins_those_of_the_others() {
        insta::assert_snapshot!(after(
            &JoinedProducts,
            r#"graph "g" {
  input %x: f16[batch, time, 2]
  weight %g: f32[1, 2] = [0.5, 1.5]
  weight %q: f16[2, 2] = [1.0, 2.0, 3.0, 4.0]
  weight %k: f16[1, 2] = [5.0, 6.0]
  weight %late: f32[1] = [0.25]
  weight %two: f16[2] = [0.5, -0.5]
  weight %one: f16[1] = [1.0]
  %narrow = Cast(%g) {to: "f16"}
  %tg = Transpose(%narrow) {perm: [1, 0]}
  %tq = Transpose(%q) {perm: [1, 0]}
  %tk = Transpose(%k) {perm: [1, 0]}
  %a = MatMul(%x, %tg)
  %wide = Cast(%a) {to: "f32"}
  %gate = Add(%wide, %late)
  %b = MatMul(%x, %tq)
  %c = MatMul(%x, %tk)
  %d = Add(%b, %two)
  %e = Add(%c, %one)
  output "gate" %gate
  output "d" %d
  output "e" %e
}"#,
            &INPUTS,
        ));
    }

    #[test]
    fn one_number_that_is_added_to_all_is_no_bias() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 2]
  weight %q: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
  weight %one: f32[1] = [0.5]
  %t = Transpose(%q) {perm: [1, 0]}
  %a = MatMul(%x, %t)
  %b = MatMul(%x, %t)
  %c = MatMul(%x, %t)
  %d = Add(%a, %one)
  %e = Add(%b, %one)
  %f = Add(%c, %one)
  output "d" %d
  output "e" %e
  output "f" %f
}"#;
        let joined = after(&JoinedProducts, text, &INPUTS);
        assert_eq!(
            (joined.matches(" = MatMul(").count(), joined.matches(" = Add(").count()),
            (1, 3),
            "{joined}"
        );
    }

    /// As MLPs beside an attention have it, whose bias the activation adds.
    #[test]
    fn what_has_no_bias_leaves_late_ones_to_those_that_have() {
        insta::assert_snapshot!(after(
            &JoinedProducts,
            r#"graph "g" {
  input %x: f16[batch, time, 2]
  weight %u: f16[2, 2] = [0.5, 1.5, -1.0, 0.25]
  weight %w: f16[1, 2] = [0.75, -1.5]
  weight %g: f16[1, 2] = [0.5, 1.5]
  weight %q: f16[2, 2] = [1.0, 2.0, 3.0, 4.0]
  weight %k: f16[1, 2] = [5.0, 6.0]
  weight %late: f32[1] = [0.25]
  weight %two: f16[2] = [0.5, -0.5]
  weight %one: f16[1] = [1.0]
  %tu = Transpose(%u) {perm: [1, 0]}
  %tw = Transpose(%w) {perm: [1, 0]}
  %tg = Transpose(%g) {perm: [1, 0]}
  %tq = Transpose(%q) {perm: [1, 0]}
  %tk = Transpose(%k) {perm: [1, 0]}
  %up = MatMul(%x, %tu)
  %more = MatMul(%x, %tw)
  %a = MatMul(%x, %tg)
  %wide = Cast(%a) {to: "f32"}
  %gate = Add(%wide, %late)
  %b = MatMul(%x, %tq)
  %c = MatMul(%x, %tk)
  %d = Add(%b, %two)
  %e = Add(%c, %one)
  output "up" %up
  output "more" %more
  output "gate" %gate
  output "d" %d
  output "e" %e
}"#,
            &INPUTS,
        ));
    }

    #[test]
    fn two_products_with_a_bias_and_one_without_stay() {
        insta::assert_snapshot!(after(
            &JoinedProducts,
            r#"graph "g" {
  input %x: f32[batch, time, 2]
  weight %q: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
  weight %k: f32[1, 2] = [5.0, 6.0]
  weight %v: f32[1, 2] = [7.0, 8.0]
  weight %bias: f32[1] = [0.5]
  %tq = Transpose(%q) {perm: [1, 0]}
  %tk = Transpose(%k) {perm: [1, 0]}
  %tv = Transpose(%v) {perm: [1, 0]}
  %a = MatMul(%x, %tq)
  %b = MatMul(%x, %tk)
  %c = MatMul(%x, %tv)
  %d = Add(%b, %bias)
  %e = Add(%c, %bias)
  output "a" %a
  output "d" %d
  output "e" %e
}"#,
            &INPUTS,
        ));
    }
}
