//! Quantiles of the distributions that frequencies and weights are drawn from.

use statrs::distribution::{ChiSquared, ContinuousCDF, Normal};

/// Φ⁻¹(u), the quantile of the standard normal distribution, for 0 < u < 1.
pub fn normal(u: f64) -> f64 {
    Normal::standard().inverse_cdf(u)
}

/// The quantile of the χ distribution with `d` degrees of freedom, the length of a standard normal
/// vector in R^d, for 0 < u < 1.
pub fn chi(d: usize, u: f64) -> f64 {
    let squared = ChiSquared::new(d as f64).expect("a positive number of degrees of freedom");
    squared.inverse_cdf(u).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_quantiles() {
        // Φ⁻¹(0.975), and the median of χ² with two degrees of freedom, 2 ln 2.
        assert!((normal(0.975) - 1.959_963_984_540_054).abs() < 1e-9);
        assert!((chi(2, 0.5) - (2.0 * 2f64.ln()).sqrt()).abs() < 1e-7);
    }
}
