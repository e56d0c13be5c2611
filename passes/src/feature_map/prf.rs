//! `prf`, positive random features: φ(x) = exp(ω x - ‖x‖²/2) / √m, ω ~ N(0, I) (Eq. 5; Performer,
//! Choromanski et al. 2021). The average of φ(q)·φ(k) is exactly exp(q·k).
//!
//! Rows of ω are orthogonal, d at a time and each as long as an independent one, which varies less: the published default. With
//! `rows: independent` each is drawn by itself.

use super::{Emitted, FeatureMap, Numbers, ParameterSpec, dot, emit_norm, eval_rows, single};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::{MapSpec, Rows};

pub(super) struct Prf;

impl FeatureMap for Prf {
    fn name(&self) -> &'static str {
        "prf"
    }

    /// ω is drawn from a normal distribution as it is: no lengths are chosen apart from directions.
    fn fields(&self) -> &'static [&'static str] {
        &["features", "rows"]
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::drawn("omega")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, _heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let omega = match spec.rows {
            Rows::Orthogonal => orthogonal(d, m, random),
            Rows::Independent => (0..m * d).map(|_| random.normal()).collect(),
        };
        vec![single(&[m as u64, d as u64], &omega)]
    }

    fn is_exponential(&self) -> bool {
        true
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let products = p.linear(x, parameters["omega"], None);
        let last = p.rank(products).saturating_sub(1);
        let m = p.known_dim(products, last) as f64;
        let norm = emit_norm(p, x, 0.5);
        let shift = p.add_scalar(norm, m.ln() / 2.0);
        p.sub(products, shift)
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        let products = eval_rows(&parameters["omega"], x);
        let shift = dot(x, x) / 2.0 + (products.len() as f64).ln() / 2.0;
        products.iter().map(|e| e - shift).collect()
    }
}

/// `count` rows, of which d after d are orthogonal, in directions that are equally likely and as long as normal vectors.
fn orthogonal(d: usize, count: usize, random: &mut Random) -> Vec<f64> {
    let mut rows: Vec<f64> = Vec::with_capacity(count * d);
    while rows.len() < count * d {
        for row in basis(d, random) {
            let independent: Vec<f64> = (0..d).map(|_| random.normal()).collect();
            let length = dot(&independent, &independent).sqrt();
            rows.extend(row.iter().map(|x| x * length));
        }
    }
    rows.truncate(count * d);
    rows
}

/// An orthonormal basis that no direction is likelier to be in than another: normal vectors, each without its part along those
/// before it.
fn basis(d: usize, random: &mut Random) -> Vec<Vec<f64>> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(d);
    while rows.len() < d {
        let mut row: Vec<f64> = (0..d).map(|_| random.normal()).collect();
        let drawn = dot(&row, &row).sqrt();
        // Twice, as once leaves what rounding did.
        for other in rows.iter().chain(&rows) {
            let along = dot(&row, other);
            row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        let length = dot(&row, &row).sqrt();
        // One that lies among the others is drawn again.
        if length > 1e-6 * drawn {
            rows.push(row.iter().map(|x| x / length).collect());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn omega(rows: Rows) -> Vec<f64> {
        let spec = MapSpec { features: 3, rows, ..MapSpec::default() };
        Prf.initial(&spec, 1, 8, &mut Random::new(2))[0].to_f64()
    }

    #[test]
    fn rows_are_orthogonal_a_block_at_a_time() {
        let largest = |omega: &[f64]| {
            let mut most: f64 = 0.0;
            for block in omega.chunks(8 * 8) {
                let rows: Vec<&[f64]> = block.chunks(8).collect();
                for (i, a) in rows.iter().enumerate() {
                    for b in &rows[..i] {
                        most = most.max(dot(a, b).abs() / (dot(a, a) * dot(b, b)).sqrt());
                    }
                }
            }
            most
        };
        let (orthogonal, independent) = (omega(Rows::Orthogonal), omega(Rows::Independent));
        // They are stored in f32.
        assert!(largest(&orthogonal) < 1e-6 && largest(&independent) > 0.3);
        // Of 24 lengths whose squares average 8, with a deviation of 4 each.
        for omega in [orthogonal, independent] {
            let mean = dot(&omega, &omega) / 24.0;
            assert!((mean - 8.0).abs() < 3.0, "{mean}");
        }
    }
}
