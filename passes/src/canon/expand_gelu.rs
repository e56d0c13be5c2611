//! Matches: `Gelu`, and `Gelu`, `BiasGelu`, `FastGelu` and `QuickGelu` of ONNX Runtime
//! Becomes: `Erf`, `Tanh` or `Sigmoid`, and products
//! Exact: yes, up to rounding

use super::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Applied, PatchError};

pub(super) struct ExpandGelu;

impl GraphRule for ExpandGelu {
    fn name(&self) -> &'static str {
        "expand_gelu"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| {
            let is_tanh = match (node.op.domain(), node.op.name()) {
                ("", "Gelu") => match node.op.str("approximate")? {
                    "none" => false,
                    "tanh" => true,
                    _ => return None,
                },
                ("com.microsoft", "Gelu" | "BiasGelu") => false,
                ("com.microsoft", "FastGelu") => true,
                ("com.microsoft", "QuickGelu") => {
                    let x = w.input(node, 0)?;
                    w.patch.ty(x).dtype?;
                    return Some(vec![quick(w, x, node.op.float("alpha")?.into())]);
                }
                _ => return None,
            };
            let x = w.input(node, 0)?;
            w.patch.ty(x).dtype?;
            let x = match w.input(node, 1) {
                Some(bias) => w.patch.add(x, bias),
                None => x,
            };
            Some(vec![if is_tanh { tanh(w, x) } else { erf(w, x) }])
        })
    }
}

/// x σ(αx)
fn quick(w: &mut Sweep<'_>, x: ValueId, alpha: f64) -> ValueId {
    let inner = if alpha == 1.0 { x } else { w.patch.mul_scalar(x, alpha) };
    let gate = w.patch.sigmoid(inner);
    w.patch.mul(x, gate)
}

/// x (1 + erf(x/√2)) / 2
fn erf(w: &mut Sweep<'_>, x: ValueId) -> ValueId {
    let inner = w.patch.mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2);
    let gate = w.patch.erf(inner);
    gated(w, x, gate)
}

/// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2
fn tanh(w: &mut Sweep<'_>, x: ValueId) -> ValueId {
    let square = w.patch.mul(x, x);
    let bent = w.patch.mul_scalar(square, 0.044_715);
    let factor = w.patch.add_scalar(bent, 1.0);
    let inner = w.patch.mul(x, factor);
    let inner = w.patch.mul_scalar(inner, (2.0 / std::f64::consts::PI).sqrt());
    let gate = w.patch.tanh(inner);
    gated(w, x, gate)
}

fn gated(w: &mut Sweep<'_>, x: ValueId, gate: ValueId) -> ValueId {
    let gate = w.patch.add_scalar(gate, 1.0);
    let gate = w.patch.mul_scalar(gate, 0.5);
    w.patch.mul(x, gate)
}

#[cfg(test)]
mod tests {
    use crate::canon::tests::{after, check_close};

    const GELUS: &str = r#"graph "g" {
  input %x: f32[n, 3]
  weight %b: f32[3] = [0.5, -0.5, 1.0]
  %p = Gelu(%x)
  %q = Gelu(%x) {approximate: "tanh"}
  %r = com.microsoft.BiasGelu(%x, %b)
  %s = com.microsoft.FastGelu(%x, %b)
  %t = com.microsoft.QuickGelu(%x)
  output "p" %p
  output "q" %q
  output "r" %r
  output "s" %s
  output "t" %t
}"#;

    #[test]
    fn gelus_are_spelled_out() {
        insta::assert_snapshot!(after(GELUS));
    }

    /// Constants such as 1/√2 are rounded to f32.
    #[test]
    fn the_numbers_stay() {
        check_close(GELUS, &[("x", &[4, 3])], 1e-7);
    }
}
