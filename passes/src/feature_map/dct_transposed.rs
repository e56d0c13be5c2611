//! `dct-transposed`: φ(x) = softmax(T Cᵀ x), as the authors' released code has it: the transposed DCT where the paper has C,
//! and one matrix for the queries and keys of all heads, which stays as it was drawn.

use super::{Emitted, FeatureMap, Numbers, ParameterSpec, eval_rows, eval_softmax, frequency, single};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::names::EXACT;
use dijiang_format::recipe::MapSpec;

pub(super) struct DctTransposed;

impl FeatureMap for DctTransposed {
    fn name(&self) -> &'static str {
        "dct-transposed"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["lengths", "radial"]
    }

    fn sums_to_one(&self) -> bool {
        true
    }

    /// Queries and keys as they are: the released code divides by no √head_dim.
    fn is_scaled(&self) -> bool {
        false
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::fixed("omega")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, _heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let t = frequency::lengths(spec, d, d, random);
        let c = frequency::dct(d);
        let omega: Vec<f64> = (0..d * d).map(|at| t[at / d] * c[at % d * d + at / d]).collect();
        vec![single(&[d as u64, d as u64], &omega)]
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        // In f32 in training too: exponents that no √head_dim divides are large, and a rounding of one is a share of its power.
        p.within(EXACT, |p| {
            let products = p.linear(x, parameters["omega"], None);
            p.softmax(products, -1)
        })
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        eval_softmax(&eval_rows(&parameters["omega"], x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row i of the matrix is t_i times column i of C, and a row of C times its length would not be.
    #[test]
    fn rows_are_columns_of_the_transform() {
        let d = 6;
        let drawn = DctTransposed.initial(&MapSpec::default(), 2, d, &mut Random::new(4));
        let (omega, c) = (drawn[0].to_f64(), frequency::dct(d));
        let is_along = |row: &[f64], direction: &dyn Fn(usize) -> f64| {
            let along: f64 = row.iter().enumerate().map(|(j, x)| x * direction(j)).sum();
            (0..d).all(|j| (row[j] - along * direction(j)).abs() < 1e-6)
        };
        for (i, row) in omega.chunks(d).enumerate() {
            assert!(is_along(row, &|j| c[j * d + i]), "{i}");
            assert!(!is_along(row, &|j| c[i * d + j]), "{i}");
        }
    }
}
