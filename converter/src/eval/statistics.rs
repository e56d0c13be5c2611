//! Figures and their errors.

/// A measurement, and over how many tokens or questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub value: f64,
    pub n: usize,
    /// Of the value, over windows, rows or questions; absent where there is only one.
    pub standard_error: Option<f64>,
    /// What each window, row or question gave: a negative log-likelihood, on average over its tokens, or a share.
    pub each: Vec<f64>,
}

impl Measured {
    /// The mean of what each gave.
    pub fn mean(each: Vec<f64>, n: usize) -> Self {
        let (value, standard_error) = mean(&each);
        Self { value, n, standard_error, each }
    }

    /// e to a mean negative log-likelihood of `n` tokens or words.
    pub fn perplexity(mean_of_all: f64, each: Vec<f64>, n: usize) -> Self {
        let value = mean_of_all.exp();
        // That of a logarithm is relative.
        let standard_error = mean(&each).1.map(|error| error * value);
        Self { value, n, standard_error, each }
    }
}

/// Mean and standard error of some numbers; no error of less than two.
pub fn mean(each: &[f64]) -> (f64, Option<f64>) {
    let n = each.len() as f64;
    let mean = each.iter().sum::<f64>() / n;
    let squares: f64 = each.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (each.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_that_of_the_mean() {
        assert_eq!(mean(&[1.0, 0.0, 0.0, 1.0]), (0.5, Some((1.0_f64 / 12.0).sqrt())));
        assert_eq!(mean(&[0.25]), (0.25, None));
        let found = Measured::perplexity(2.0, vec![1.0, 3.0], 2);
        assert_eq!((found.value, found.standard_error), (2.0_f64.exp(), Some(2.0_f64.exp())));
    }
}
