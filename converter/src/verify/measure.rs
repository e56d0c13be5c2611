//! How far two sets of logits are apart.

/// ‖values - reference‖ / ‖reference‖ over all tokens; NaN where either holds a number that is not finite,
/// or where their lengths differ. A single token of n may be off by √n times as much.
pub(super) fn relative_error(values: &[f32], reference: &[f32]) -> f64 {
    if values.len() != reference.len() || values.iter().chain(reference).any(|x| !x.is_finite()) {
        return f64::NAN;
    }
    let difference = values.iter().zip(reference).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let whole = reference.iter().map(|b| f64::from(*b).powi(2));
    (difference.sum::<f64>() / whole.sum::<f64>()).sqrt()
}

/// The same for each row of `width` numbers, and of these the median, which a few rows that round further than others
/// do not move.
pub(super) fn median_error(values: &[f32], reference: &[f32], width: usize) -> f64 {
    if values.len() != reference.len() || reference.is_empty() || width == 0 {
        return f64::NAN;
    }
    let rows = values.chunks(width).zip(reference.chunks(width));
    let mut errors: Vec<f64> = rows.map(|(row, expected)| relative_error(row, expected)).collect();
    errors.sort_by(f64::total_cmp);
    match errors.iter().any(|error| error.is_nan()) {
        true => f64::NAN,
        false => errors[errors.len() / 2],
    }
}

/// How a converted model differs from the model it was made from, before any training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Drift {
    /// KL(softmax ‖ linear) of the next-token distributions, nats, mean over tokens.
    pub(super) kl: f64,
    /// Share of tokens whose likeliest next token is the same.
    pub(super) agreement: f64,
}

impl Drift {
    /// Over rows of `vocab` logits.
    pub(super) fn measure(linear: &[f32], softmax: &[f32], vocab: usize) -> Self {
        let rows = softmax.chunks_exact(vocab).zip(linear.chunks_exact(vocab));
        let (mut kl, mut same, mut count) = (0.0, 0.0, 0.0);
        for (p, q) in rows {
            let (log_p, log_q) = (log_softmax(p), log_softmax(q));
            kl += log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            same += f64::from(u8::from(argmax(p) == argmax(q)));
            count += 1.0;
        }
        Self { kl: kl / count, agreement: same / count }
    }
}

/// exp of the mean loss of each token given those before it; the logits of the last are of none.
pub(super) fn perplexity(row: &[i64], logits: &[f32]) -> f64 {
    let rows = logits.chunks_exact((logits.len() / row.len().max(1)).max(1));
    let losses: Vec<f64> =
        rows.zip(row.iter().skip(1)).map(|(row, next)| -log_softmax(row)[*next as usize]).collect();
    (losses.iter().sum::<f64>() / losses.len() as f64).exp()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_norm_of_the_reference() {
        assert!((relative_error(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert!(relative_error(&[f32::NAN], &[1.0]).is_nan());
        assert!(relative_error(&[1.0], &[1.0, 2.0]).is_nan());
    }

    #[test]
    fn perplexity_is_that_of_the_tokens_that_follow() {
        // The second token has three quarters, the third a half.
        let logits = [3f32.ln(), 0.0, 0.0, 0.0, 9.0, 0.0];
        let expected = (0.75f64 * 0.5).powf(-0.5);
        assert!((perplexity(&[1, 0, 1], &logits) - expected).abs() < 1e-6);
    }

    #[test]
    fn one_row_in_three_does_not_move_the_median() {
        let reference = [2.0, 4.0, 8.0];
        assert!((median_error(&[3.0, 4.4, 8.0], &reference, 1) - 0.1).abs() < 1e-6);
        assert!(median_error(&[2.0, 4.0, f32::NAN], &reference, 1).is_nan());
        assert!(median_error(&[2.0, 4.0], &reference, 1).is_nan());
        assert!(median_error(&[], &[], 1).is_nan());
    }

    #[test]
    fn drift_of_a_model_from_itself_is_none() {
        let logits = [0.5, 1.0, -1.0, 2.0, 0.0, 1.0];
        let drift = Drift::measure(&logits, &logits, 3);
        assert_eq!((drift.kl, drift.agreement), (0.0, 1.0));
        // Uniform against one bit of certainty: KL(½, ½ ‖ ¼, ¾) = ln 2 - ½ ln 3 + ... by hand.
        let drift = Drift::measure(&[0.0, 3f32.ln()], &[0.0, 0.0], 2);
        let by_hand = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((drift.kl - by_hand).abs() < 1e-6);
    }
}
