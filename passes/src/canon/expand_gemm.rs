//! Matches: `Gemm`, `FusedGemm`, `FusedMatMul`
//! Becomes: `MatMul`, with `Transpose`, `Mul` by a constant, `Add` and an activation where they are asked for
//! Exact: yes, up to rounding

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};

pub(super) struct ExpandGemm;

impl GraphRule for ExpandGemm {
    fn name(&self) -> &'static str {
        "expand_gemm"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match (node.op.domain(), node.op.name()) {
            ("", "Gemm") => Some(vec![gemm(w, node)?]),
            ("com.microsoft", "FusedGemm") => fused_gemm(w, node),
            ("com.microsoft", "FusedMatMul") => {
                let batched = |name: &str| node.op.int(name) == Some(1);
                if batched("transBatchA") || batched("transBatchB") {
                    return None;
                }
                Some(vec![product(w, node)?])
            }
            _ => None,
        })
    }
}

/// alpha · A B, each factor transposed where the attributes say so.
fn product(w: &mut Sweep<'_>, node: &Node) -> Option<ValueId> {
    let (a, b) = (w.input(node, 0)?, w.input(node, 1)?);
    let ranks = [w.patch.ty(a).rank()?, w.patch.ty(b).rank()?];
    w.patch.ty(a).dtype?;
    let a = if node.op.int("transA") == Some(1) { transposed(w, a, ranks[0]) } else { a };
    let b = if node.op.int("transB") == Some(1) { transposed(w, b, ranks[1]) } else { b };
    let product = w.patch.matmul(a, b);
    Some(scaled(w, product, node.op.float("alpha").unwrap_or(1.0)))
}

fn transposed(w: &mut Sweep<'_>, x: ValueId, rank: usize) -> ValueId {
    if rank < 2 {
        return x;
    }
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 1, rank - 2);
    w.patch.transpose(x, &perm)
}

fn scaled(w: &mut Sweep<'_>, x: ValueId, factor: f32) -> ValueId {
    if factor == 1.0 { x } else { w.patch.mul_scalar(x, factor.into()) }
}

fn gemm(w: &mut Sweep<'_>, node: &Node) -> Option<ValueId> {
    let product = product(w, node)?;
    let Some(c) = w.input(node, 2) else { return Some(product) };
    let c = scaled(w, c, node.op.float("beta").unwrap_or(1.0));
    Some(w.patch.add(product, c))
}

fn fused_gemm(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let activation = match node.op.str("activation")? {
        "" => None,
        name @ ("Relu" | "Tanh" | "Sigmoid") => Some(Op::new(name)),
        "LeakyRelu" => {
            let alpha = node.op.float("activation_alpha").unwrap_or(0.01);
            Some(Op::new("LeakyRelu").with("alpha", alpha))
        }
        _ => return None,
    };
    let y = gemm(w, node)?;
    Some(vec![activation.map_or(y, |op| w.patch.node(op, &[y]))])
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_exact};

    const PRODUCTS: &str = r#"graph "g" {
  input %x: f32[n, 3]
  input %k: f32[b, 2, n, 4]
  weight %w: f32[2, 3] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
  weight %c: f32[2] = [0.5, -0.5]
  %g = Gemm(%x, %w, %c) {transB: 1, alpha: 0.5}
  %h = com.microsoft.FusedGemm(%x, %w, %c) {transB: 1, activation: "Relu"}
  %m = com.microsoft.FusedMatMul(%k, %k) {transB: 1, alpha: 0.25}
  %n = com.microsoft.FusedMatMul(%k, %k) {transBatchA: 1, transA: 1}
  output "g" %g
  output "h" %h
  output "m" %m
  output "batches stay" %n
}"#;

    #[test]
    fn products_are_spelled_out() {
        insta::assert_snapshot!(after(PRODUCTS));
    }

    #[test]
    fn the_numbers_stay() {
        let known =
            PRODUCTS.replace("  %n = com.microsoft.FusedMatMul(%k, %k) {transBatchA: 1, transA: 1}\n", "");
        check_exact(
            &known.replace("  output \"batches stay\" %n\n", ""),
            &[("x", &[4, 3]), ("k", &[2, 2, 3, 4])],
        );
    }
}
