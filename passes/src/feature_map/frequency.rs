//! Frequencies ω_i = t_i v_i: lengths t from quantiles, directions v from the rows of orthonormal
//! cosine transforms (paper, section 3.2; Eq. 9 to 12).

use crate::numeric::quantile;
use crate::numeric::random::Random;
use dijiang_format::recipe::{Lengths, MapSpec, Radial};
use std::f64::consts::PI;

/// The orthonormal DCT-II of size `d`, row by row: C[i][j] = √(2/d) cos(π i (j + ½) / d), the first
/// row over √2.
pub fn dct(d: usize) -> Vec<f64> {
    (0..d * d).map(|k| dct_2(d as f64, k / d, k % d)).collect()
}

/// `count` unit vectors of R^d, row by row: the rows of the DCT-II, then of the cosine and sine transforms of other boundary
/// conditions (section 3.2; Ahmed et al. 1974), and of all of them again after one seeded flip of signs after another.
pub fn family(d: usize, count: usize, random: &mut Random) -> Vec<f64> {
    const KINDS: [fn(f64, usize, usize) -> f64; 8] = [dct_2, dct_3, dct_4, dct_1, dst_2, dst_3, dst_4, dst_1];
    let mut rows = Vec::with_capacity(count * d);
    let mut signs = vec![1.0; d];
    while rows.len() < count * d {
        for kind in KINDS {
            rows.extend((0..d * d).map(|k| kind(d as f64, k / d, k % d) * signs[k % d]));
        }
        signs.iter_mut().for_each(|s| *s = if random.uniform() < 0.5 { -1.0 } else { 1.0 });
    }
    rows.truncate(count * d);
    rows
}

/// √(2/n), over √2 on an edge.
fn weight(n: f64, is_edge: bool) -> f64 {
    if is_edge { (1.0 / n).sqrt() } else { (2.0 / n).sqrt() }
}

fn dct_2(n: f64, i: usize, j: usize) -> f64 {
    weight(n, i == 0) * (PI * i as f64 * (j as f64 + 0.5) / n).cos()
}

fn dct_3(n: f64, i: usize, j: usize) -> f64 {
    dct_2(n, j, i)
}

fn dct_4(n: f64, i: usize, j: usize) -> f64 {
    weight(n, false) * (PI * (i as f64 + 0.5) * (j as f64 + 0.5) / n).cos()
}

/// Both its edges are halved; of one number it is that number.
fn dct_1(n: f64, i: usize, j: usize) -> f64 {
    let last = n - 1.0;
    if last == 0.0 {
        return 1.0;
    }
    let half = |k: usize| if k == 0 || k as f64 == last { 0.5f64.sqrt() } else { 1.0 };
    (2.0 / last).sqrt() * half(i) * half(j) * (PI * i as f64 * j as f64 / last).cos()
}

fn dst_2(n: f64, i: usize, j: usize) -> f64 {
    let i = i as f64 + 1.0;
    weight(n, i == n) * (PI * i * (j as f64 + 0.5) / n).sin()
}

fn dst_3(n: f64, i: usize, j: usize) -> f64 {
    dst_2(n, j, i)
}

fn dst_4(n: f64, i: usize, j: usize) -> f64 {
    weight(n, false) * (PI * (i as f64 + 0.5) * (j as f64 + 0.5) / n).sin()
}

fn dst_1(n: f64, i: usize, j: usize) -> f64 {
    let size = n + 1.0;
    (2.0 / size).sqrt() * (PI * (i as f64 + 1.0) * (j as f64 + 1.0) / size).sin()
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
        let mut random = Random::new(3);
        are_bases(12, &directions(12, 36, &mut random));
        for d in [1, 2, 3, 12] {
            are_bases(d, &family(d, 9 * d, &mut random));
        }
    }

    fn are_bases(d: usize, rows: &[f64]) {
        for (n, block) in rows.chunks_exact(d * d).enumerate() {
            for (i, j) in (0..d * d).map(|k| (k / d, k % d)) {
                let dot: f64 = (0..d).map(|k| block[i * d + k] * block[j * d + k]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{d} {n} {i} {j} {dot}");
            }
        }
    }

    /// No row stands in two members, nor its negative.
    #[test]
    fn members_of_the_family_differ() {
        let d = 12;
        let rows = family(d, 8 * d, &mut Random::new(3));
        let rows: Vec<&[f64]> = rows.chunks_exact(d).collect();
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows[..i].iter().enumerate() {
                let dot: f64 = a.iter().zip(*b).map(|(a, b)| a * b).sum();
                assert!(dot.abs() < 1.0 - 1e-3, "{i} {j} {dot}");
            }
        }
    }
}
