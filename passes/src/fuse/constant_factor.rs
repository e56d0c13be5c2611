//! Matches: a product of a scaled value and a matrix that is made of constants
//! Becomes: the product of the value and the scaled matrix
//! Exact: yes, up to rounding
//! Declines when: the factor is no number
//!
//! For graphs that hold their weights: a runtime scales such a matrix once, when it loads the graph. Where weights
//! are bound as inputs it would at every call.

use crate::canon::{GraphRule, rewrite_matches};
use crate::ir::graph::Graph;
use crate::ir::patch::{Applied, PatchError};
use crate::ir::walk::is_made_of_constants;
use crate::pattern::Pat;

#[derive(Debug)]
pub struct ConstantFactor;

impl GraphRule for ConstantFactor {
    fn name(&self) -> &'static str {
        "constant_factor"
    }

    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError> {
        let scaled = Pat::op("Mul", [Pat::Scalar.bind("factor"), Pat::var("x")]);
        let product = Pat::op("MatMul", [scaled, Pat::var("matrix")]);
        rewrite_matches(graph, self.name(), &product, |w, found| {
            let matrix = found.get("matrix").filter(|matrix| is_made_of_constants(w.graph, *matrix))?;
            let [x, matrix] = [found.get("x")?, matrix].map(|value| w.current(value));
            let matrix = w.patch.mul(matrix, found.get("factor")?);
            Some(vec![w.patch.matmul(x, matrix)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ConstantFactor;
    use crate::canon::GraphRule as _;
    use crate::ir::text::{parse, print};
    use crate::testing::{noise, relative_error, run};

    fn after(text: &str) -> String {
        let before = parse(text).expect("a graph");
        let mut graph = before.clone();
        ConstantFactor.sweep(&mut graph).expect("a patch");
        let inputs = [("x", noise(&[2, 3, 4], 1)), ("z", noise(&[4, 2], 2))];
        let (found, expected) = (run(&graph, &inputs), run(&before, &inputs));
        for (name, value) in &expected {
            // Both in f64, where a product rounds at 2⁻⁵³.
            let error = relative_error(&found[name], value);
            assert!(error < 1e-14, "{name}: {error:e}");
        }
        print(&graph)
    }

    #[test]
    fn a_factor_goes_to_the_side_that_is_constant() {
        insta::assert_snapshot!(after(
            r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %z: f32[4, 2]
  weight %w: f32[2, 4] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  const %c: f32[] = [0.25]
  %s = Mul(%x, %c)
  %t = Transpose(%w) {perm: [1, 0]}
  %y = MatMul(%s, %t)
  %n = Mul(%s, %s)
  output "y" %y
  output "n" %n
}"#
        ));
    }

    #[test]
    fn inputs_and_other_factors_stay() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 4]
  input %z: f32[4, 2]
  weight %w: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  const %c: f32[] = [0.25]
  const %v: f32[4] = [0.25, 0.5, 0.75, 1.0]
  %s = Mul(%x, %c)
  %y = MatMul(%s, %z)
  %r = Mul(%x, %v)
  %u = MatMul(%r, %w)
  output "y" %y
  output "u" %u
}"#;
        assert_eq!(after(text), print(&parse(text).expect("a graph")));
    }
}
