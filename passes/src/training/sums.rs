//! Sums over axes in the middle as products with ones. ONNX Runtime's CUDA kernels sum over the last axes, or the
//! first, at the speed of the memory; other sums go a path that is several times slower, and matrix products do not.

use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_node, rebuild};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn sums_as_products(graph: &Graph) -> Result<Graph, PatchError> {
    rebuild(graph, "sums", &mut Sums::default())
}

#[derive(Default)]
struct Sums {
    /// Rows of ones by length.
    ones: BTreeMap<(u64, &'static str), ValueId>,
}

/// Neighbouring axes that are all summed over, or all not, as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    is_summed: bool,
    len: u64,
}

impl Rebuild for Sums {
    fn node(
        &mut self,
        p: &mut Patch<'_>,
        graph: &Graph,
        node: &Node,
        inputs: &[Option<ValueId>],
    ) -> Vec<ValueId> {
        let summed = match inputs {
            [Some(x)] if node.op.is("ReduceSum") => self.summed(p, graph, node, *x),
            _ => None,
        };
        summed.map_or_else(|| copy_node(p, graph, node, inputs), |sum| vec![sum])
    }
}

impl Sums {
    fn summed(&mut self, p: &mut Patch<'_>, graph: &Graph, node: &Node, x: ValueId) -> Option<ValueId> {
        let dims = numbers(graph, node.input(0)?)?;
        let out = numbers(graph, node.outputs[0])?;
        graph.value(node.outputs[0]).ty.dtype.filter(|dtype| dtype.is_float())?;
        let mut runs = runs(&dims, node.op.ints("axes")?)?;
        if is_fast(&runs) {
            return None;
        }
        p.set_scope(&node.name);
        let mut sum = x;
        // The longest first, as what is left is shorter by as much.
        while let Some(at) = (0..runs.len()).filter(|at| runs[*at].is_summed).max_by_key(|at| runs[*at].len) {
            sum = self.sum_run(p, sum, &runs, at);
            runs[at] = Run { is_summed: false, len: 1 };
        }
        Some(p.reshape(sum, &signed(&out)))
    }

    fn sum_run(&mut self, p: &mut Patch<'_>, x: ValueId, runs: &[Run], at: usize) -> ValueId {
        let dtype = p.dtype(x);
        let len = |runs: &[Run]| runs.iter().map(|run| run.len).product::<u64>();
        let view = [len(&runs[..at]), runs[at].len, len(&runs[at + 1..])];
        let x = p.reshape(x, &signed(&view));
        if view[0] == 1 || view[2] == 1 {
            return p.reduce("ReduceSum", x, &[1], true);
        }
        let ones = *self.ones.entry((view[1], dtype.name())).or_insert_with(|| {
            let ones = Tensor::from_f32(&[1, view[1]], &vec![1.0; view[1] as usize]).cast(dtype);
            p.constant("ones", ones)
        });
        p.matmul(ones, x)
    }
}

/// Whether the sum is over the first axes alone, or the last.
fn is_fast(runs: &[Run]) -> bool {
    let mut summed = (0..runs.len()).filter(|at| runs[*at].is_summed);
    match (summed.next(), summed.next()) {
        (Some(at), None) => at == 0 || at + 1 == runs.len(),
        (at, _) => at.is_none(),
    }
}

fn signed(dims: &[u64]) -> Vec<i64> {
    dims.iter().map(|d| *d as i64).collect()
}

fn numbers(graph: &Graph, value: ValueId) -> Option<Vec<u64>> {
    graph.value(value).ty.shape.as_ref()?.iter().map(Dim::known).collect()
}

/// Axes of length 1 belong to no run.
fn runs(dims: &[u64], axes: &[i64]) -> Option<Vec<Run>> {
    let summed = axes.iter().map(|axis| resolve_axis(*axis, dims.len()).ok());
    let summed: BTreeSet<usize> = summed.collect::<Option<_>>()?;
    let mut runs: Vec<Run> = Vec::new();
    for (axis, len) in dims.iter().enumerate().filter(|(_, len)| **len != 1) {
        let is_summed = summed.contains(&axis);
        match runs.last_mut().filter(|run| run.is_summed == is_summed) {
            Some(run) => run.len = run.len.checked_mul(*len)?,
            None => runs.push(Run { is_summed, len: *len }),
        }
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, relative_error, run};

    fn case(dims: &str, axes: &str, keepdims: u8, out: &str) -> Graph {
        let text = format!(
            "graph \"sum\" {{\n  input %x: f32[{dims}]\n  %y = ReduceSum(%x) {{axes: [{axes}], keepdims: \
             {keepdims}}} \"sum\": f32[{out}]\n  output \"y\" %y\n}}"
        );
        parse(&text).expect("it parses")
    }

    fn after(graph: &Graph) -> Graph {
        let written = sums_as_products(graph).expect("it is made");
        let x = graph.value(graph.input("x").expect("x")).ty.shape.clone().expect("dims");
        let dims: Vec<usize> = x.iter().filter_map(|d| d.known().map(|d| d as usize)).collect();
        let given = [("x", noise(&dims, 3))];
        let (want, found) = (run(graph, &given), run(&written, &given));
        assert_eq!(found["y"].shape(), want["y"].shape());
        // The same terms in another order, in f64.
        assert!(relative_error(&found["y"], &want["y"]) < 1e-14);
        written
    }

    #[test]
    fn axes_in_the_middle_are_summed_by_a_product() {
        let middle = after(&case("2, 5, 1, 3, 4", "1", 1, "2, 1, 1, 3, 4"));
        let several = after(&case("2, 3, 5, 4, 6", "-1, 0, 2", 0, "3, 4"));
        insta::assert_snapshot!([print(&middle), print(&several)].join("\n"));
    }

    #[test]
    fn axes_at_the_ends_are_left_alone() {
        for graph in [
            case("2, 5, 4", "2", 1, "2, 5, 1"),
            case("2, 5, 4", "0, 1", 0, "4"),
            case("1, 5, 4", "1", 0, "1, 4"),
            case("5, 4, 1", "1", 0, "5, 1"),
        ] {
            assert_eq!(print(&after(&graph)), print(&graph));
        }
    }
}
