//! Frequencies ω_i = t_i v_i: lengths t from quantiles, directions v from the rows of orthonormal
//! cosine transforms (paper, section 3.2; Eq. 9 to 12).

use crate::numeric::quantile;
use crate::numeric::random::Random;
use dijiang_format::recipe::{Lengths, MapSpec, Radial};
use std::f64::consts::PI;

/// The orthonormal DCT-II of size `d`, row by row: C[i][j] = √(2/d) cos(π i (j + ½) / d), the first
/// row over √2.
pub fn dct(d: usize) -> Vec<f64> {
    let n = d as f64;
    let entry = |i: usize, j: usize| {
        let norm = if i == 0 { (1.0 / n).sqrt() } else { (2.0 / n).sqrt() };
        norm * (PI * i as f64 * (j as f64 + 0.5) / n).cos()
    };
    (0..d * d).map(|k| entry(k / d, k % d)).collect()
}

/// `count` unit vectors of R^d, row by row: the rows of the DCT, then of the DCT after one seeded
/// flip of signs after another, each again an orthonormal basis.
pub fn directions(d: usize, count: usize, random: &mut Random) -> Vec<f64> {
    let basis = dct(d);
    let mut rows = Vec::with_capacity(count * d);
    let mut signs = vec![1.0; d];
    while rows.len() < count * d {
        rows.extend(basis.iter().enumerate().map(|(k, x)| x * signs[k % d]));
        signs.iter_mut().for_each(|s| *s = if random.uniform() < 0.5 { -1.0 } else { 1.0 });
    }
    rows.truncate(count * d);
    rows
}

/// `count` lengths t_i. Quasi-Monte Carlo takes the quantiles of (π(i) + ½) / count in seeded order.
pub fn lengths(spec: &MapSpec, d: usize, count: usize, random: &mut Random) -> Vec<f64> {
    let quantile = |u: f64| match spec.radial {
        Radial::Normal => quantile::normal(u),
        Radial::Chi => quantile::chi(d, u),
    };
    match spec.lengths {
        Lengths::Quantiles => {
            let order = random.permutation(count);
            order.iter().map(|i| quantile((*i as f64 + 0.5) / count as f64)).collect()
        }
        Lengths::Sampled => (0..count).map(|_| quantile(random.uniform())).collect(),
    }
}

/// Directions scaled to their lengths: the rows ω_i.
pub fn scaled(directions: &[f64], lengths: &[f64]) -> Vec<f64> {
    let d = directions.len() / lengths.len();
    directions.iter().enumerate().map(|(k, x)| x * lengths[k / d]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_directions_is_an_orthonormal_basis() {
        let (d, mut random) = (12, Random::new(3));
        let rows = directions(d, 3 * d, &mut random);
        for block in rows.chunks_exact(d * d) {
            for i in 0..d {
                for j in 0..d {
                    let dot: f64 = (0..d).map(|k| block[i * d + k] * block[j * d + k]).sum();
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} {j} {dot}");
                }
            }
        }
    }
}
