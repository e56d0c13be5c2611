//! The likeliest next token.

use crate::session::error::RuntimeError;

/// The id of the highest logit; ties go to the lowest id.
///
/// An error when the row is empty or holds NaN or positive infinity, or nothing but negative infinity.
pub fn greedy(logits: &[f32]) -> Result<usize, RuntimeError> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(RuntimeError::BadLogits { id, value });
        }
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((id, value));
        }
    }
    match best {
        Some((id, value)) if value == f32::NEG_INFINITY => Err(RuntimeError::BadLogits { id, value }),
        Some((id, _)) => Ok(id),
        None => Err(RuntimeError::BadCall { place: "logits", reason: "the vocabulary is empty".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_id_of_a_tie() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap(), 1);
    }
}
