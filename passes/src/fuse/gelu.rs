//! Matches: x · (1 + erf(x / √2)) / 2, and x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, in whatever order their
//! factors and terms are written
//! Becomes: `Gelu` and `FastGelu`
//! Exact: yes, up to rounding
//! Declines when: a coefficient is another one than its element type's

use crate::canon::{GraphRule, Sweep, rewrite_nodes};
use crate::ir::graph::{Graph, Node, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Applied, PatchError};
use dijiang_format::dtype::DType;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

pub(super) struct Gelu;

impl GraphRule for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        rewrite_nodes(graph, self.name(), |w, node| match node.op.is("Mul") {
            true => fused(w, node),
            false => None,
        })
    }
}

/// a₀ + a₁ x + a₂ x² + a₃ x³
type Polynomial = [f64; 4];

fn fused(w: &mut Sweep<'_>, node: &Node) -> Option<Vec<ValueId>> {
    let graph = w.graph;
    let mut product = Product { number: 1.0, factors: Vec::new() };
    product.take(graph, node.outputs[0], MAX_DEPTH)?;
    let [a, b] = product.factors[..] else { return None };
    let slack = slack(graph, a)?;
    let (x, name) = [(a, b), (b, a)].into_iter().find_map(|(x, gate)| Some((x, gate_of(graph, gate, x)?)))?;
    let ty = |value: ValueId| &graph.value(value).ty;
    if !is_close(product.number, 0.5, slack) || ty(x) != ty(node.outputs[0]) {
        return None;
    }
    let x = w.current(x);
    Some(vec![w.patch.node(Op::in_domain("com.microsoft", name), &[x])])
}

/// How far a coefficient may be off: half precision rounds 1/√2 by 1.1e-4.
fn slack(graph: &Graph, value: ValueId) -> Option<f64> {
    match graph.value(value).ty.dtype? {
        DType::F16 | DType::BF16 => Some(2e-3),
        DType::F32 => Some(1e-6),
        _ => None,
    }
}

fn is_close(found: f64, expected: f64, slack: f64) -> bool {
    (found - expected).abs() <= slack * expected.abs()
}

/// Which operator a value is the gate of, as a function of x.
fn gate_of(graph: &Graph, gate: ValueId, x: ValueId) -> Option<&'static str> {
    let sum = graph.made_by(gate, "Add")?;
    let terms = [(0, 1), (1, 0)];
    let odd = terms.into_iter().find_map(|(one, odd)| {
        let is_one = graph.as_scalar(sum.input(one)?) == Some(1.0);
        sum.input(odd).filter(|_| is_one)
    })?;
    let slack = slack(graph, x)?;
    let fits = |inner: ValueId, expected: Polynomial| {
        let found = polynomial(graph, inner, x, MAX_DEPTH)?;
        found.iter().zip(expected).all(|(found, expected)| is_close(*found, expected, slack)).then_some(())
    };
    if let Some(erf) = graph.made_by(odd, "Erf") {
        return fits(erf.input(0)?, [0.0, FRAC_1_SQRT_2, 0.0, 0.0]).map(|()| "Gelu");
    }
    let tanh = graph.made_by(odd, "Tanh")?;
    let scale = FRAC_2_PI.sqrt();
    fits(tanh.input(0)?, [0.0, scale, 0.0, scale * 0.044_715]).map(|()| "FastGelu")
}

/// Nodes one after the other that are looked through.
const MAX_DEPTH: usize = 8;

/// A product taken apart: its numbers, and the values that are none.
struct Product {
    number: f64,
    factors: Vec<ValueId>,
}

impl Product {
    fn take(&mut self, graph: &Graph, value: ValueId, depth: usize) -> Option<()> {
        if let Some(number) = graph.as_scalar(value) {
            self.number *= number;
            return Some(());
        }
        match graph.made_by(value, "Mul").filter(|_| depth > 0) {
            Some(mul) => {
                self.take(graph, mul.input(0)?, depth - 1)?;
                self.take(graph, mul.input(1)?, depth - 1)
            }
            None => {
                self.factors.push(value);
                (self.factors.len() <= 2).then_some(())
            }
        }
    }
}

fn polynomial(graph: &Graph, value: ValueId, x: ValueId, depth: usize) -> Option<Polynomial> {
    if value == x {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(number) = graph.as_scalar(value) {
        return Some([number, 0.0, 0.0, 0.0]);
    }
    let node = graph.node(graph.producer(value)?.0);
    let of = |slot: usize| polynomial(graph, node.input(slot)?, x, depth.checked_sub(1)?);
    match node.op.name() {
        _ if !node.op.domain().is_empty() => None,
        "Add" => {
            let (a, b) = (of(0)?, of(1)?);
            Some(std::array::from_fn(|i| a[i] + b[i]))
        }
        "Mul" => times(of(0)?, of(1)?),
        "Div" => {
            let by = graph.as_scalar(node.input(1)?).filter(|by| *by != 0.0)?;
            Some(of(0)?.map(|a| a / by))
        }
        "Pow" if graph.as_scalar(node.input(1)?) == Some(3.0) => {
            let a = of(0)?;
            times(times(a, a)?, a)
        }
        _ => None,
    }
}

/// The product, where it has no power above the third.
fn times(a: Polynomial, b: Polynomial) -> Option<Polynomial> {
    let mut product = [0.0; 4];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate().filter(|(_, y)| x * **y != 0.0) {
            *product.get_mut(i + j)? += x * y;
        }
    }
    Some(product)
}

#[cfg(test)]
mod tests {
    use super::Gelu;
    use crate::fuse::tests::after;

    const INPUTS: [(&str, &[usize]); 1] = [("x", &[2, 3, 4])];

    #[test]
    fn erf_in_three_spellings_is_gelu() {
        insta::assert_snapshot!(after(
            &Gelu,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  const %root: f32[] = [1.4142135]
  const %inverse: f32[] = [0.70710677]
  const %one: f32[] = [1.0]
  const %half: f32[] = [0.5]
  %a = Div(%x, %root)
  %b = Erf(%a)
  %c = Add(%b, %one)
  %d = Mul(%x, %c)
  %e = Mul(%d, %half)
  output "times x, halved" %e
  %f = Mul(%x, %half)
  %g = Mul(%x, %inverse)
  %h = Erf(%g)
  %i = Add(%one, %h)
  %j = Mul(%f, %i)
  output "half of x first" %j
  %k = Mul(%i, %half)
  %l = Mul(%k, %x)
  output "half of the gate" %l
}"#,
            &INPUTS,
        ));
    }

    #[test]
    fn tanh_in_two_spellings_is_fast_gelu() {
        insta::assert_snapshot!(after(
            &Gelu,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  const %scale: f32[] = [0.7978845608]
  const %bend: f32[] = [0.044715]
  const %three: f32[] = [3.0]
  const %one: f32[] = [1.0]
  const %half: f32[] = [0.5]
  %a = Pow(%x, %three)
  %b = Mul(%bend, %a)
  %c = Add(%x, %b)
  %d = Mul(%c, %scale)
  %e = Tanh(%d)
  %f = Add(%e, %one)
  %g = Mul(%x, %half)
  %h = Mul(%g, %f)
  output "cube" %h
  %i = Mul(%x, %x)
  %j = Mul(%i, %bend)
  %k = Add(%j, %one)
  %l = Mul(%x, %k)
  %m = Mul(%l, %scale)
  %n = Tanh(%m)
  %o = Add(%one, %n)
  %p = Mul(%o, %half)
  %q = Mul(%x, %p)
  output "factor" %q
}"#,
            &INPUTS,
        ));
    }

    #[test]
    fn other_coefficients_and_other_values_stay() {
        insta::assert_snapshot!(after(
            &Gelu,
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %z: f32[batch, time, 4]
  const %near: f32[] = [0.7072]
  const %inverse: f32[] = [0.70710677]
  const %one: f32[] = [1.0]
  const %half: f32[] = [0.5]
  %a = Mul(%x, %near)
  %b = Erf(%a)
  %c = Add(%b, %one)
  %d = Mul(%x, %half)
  %e = Mul(%d, %c)
  output "near" %e
  %f = Mul(%z, %inverse)
  %g = Erf(%f)
  %h = Add(%g, %one)
  %i = Mul(%d, %h)
  output "gate of another value" %i
  %j = Mul(%x, %inverse)
  %k = Erf(%j)
  %l = Add(%k, %one)
  %m = Mul(%x, %l)
  output "not halved" %m
}"#,
            &[("x", &[2, 3, 4]), ("z", &[2, 3, 4])],
        ));
    }
}
