//! How far logits are apart, and how far they may be.

use dijiang_format::dtype::DType;

/// What rounding of activations in f32 (2⁻²⁴ a step) leaves after the few layers of a fixture, with room for the
/// exponentials of the feature maps, which multiply a relative error by the size of their argument.
const F32: f64 = 1e-4;

/// The same in f16 (2⁻¹¹ a step).
const F16: f64 = 2e-2;

/// How far what is computed in an element type may be from what is exact.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { F32 } else { F16 }
}

/// The largest difference, relative to the largest number of `reference`; NaN where either holds none or a number
/// that is not finite, or where their lengths differ.
pub(crate) fn relative_error(found: &[f64], reference: &[f64]) -> f64 {
    let finite = found.iter().chain(reference).all(|x| x.is_finite());
    if found.len() != reference.len() || found.is_empty() || !finite {
        return f64::NAN;
    }
    let scale = reference.iter().fold(0f64, |m, x| m.max(x.abs()));
    let difference = found.iter().zip(reference).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    difference / scale
}

/// The comparisons of one test. All are made before the first failure is told.
pub(crate) struct Comparisons {
    limit: f64,
    made: usize,
    worst: (f64, String),
    failures: Vec<String>,
}

impl Comparisons {
    pub(crate) fn within(limit: f64) -> Self {
        Self { limit, made: 0, worst: (0.0, String::new()), failures: Vec::new() }
    }

    pub(crate) fn compare(&mut self, what: &str, found: &[f64], reference: &[f64]) {
        self.compare_within(self.limit, what, found, reference);
    }

    /// One comparison under another limit.
    pub(crate) fn compare_within(&mut self, limit: f64, what: &str, found: &[f64], reference: &[f64]) {
        let error = relative_error(found, reference);
        self.made += 1;
        if error > self.worst.0 {
            self.worst = (error, what.to_owned());
        }
        // A NaN is not within anything.
        let held = error <= limit;
        if !held {
            self.failures.push(format!("{what}: {error:.2e}, not within {limit:.0e}"));
        }
    }

    /// Panics with every comparison that did not hold; says on stderr what was the worst.
    #[track_caller]
    pub(crate) fn finish(self, test: &str) {
        assert!(self.made > 0, "{test}: nothing was compared");
        let (worst, what) = &self.worst;
        eprintln!("{test}: {} comparisons, the worst {worst:.1e} ({what})", self.made);
        let failures = &self.failures;
        assert!(
            failures.is_empty(),
            "{test}: {} of {} comparisons failed\n{}",
            failures.len(),
            self.made,
            failures.join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_or_not_there_is_not_within_any_limit() {
        assert!((relative_error(&[1.0, 4.0], &[1.5, 5.0]) - 0.2).abs() < 1e-12);
        for (found, reference) in [(vec![f64::NAN], vec![1.0]), (vec![1.0], vec![1.0, 2.0]), (vec![], vec![])]
        {
            let mut comparisons = Comparisons::within(F16);
            comparisons.compare("a case", &found, &reference);
            assert_eq!(comparisons.failures.len(), 1);
        }
    }
}
