//! How far the serving graph may be from the forms where its products round what they read to bytes.

use super::decoding::ROUNDINGS;
use super::measure::median_error;
use super::oracle::{self, Rounding};
use super::{Verifier, VerifyError, read_back};
use dijiang_format::files;

/// 2⁻⁸ of the largest in a block, over some dozen layers.
const LEAST: f64 = 5e-2;
/// Beyond that, rounding cannot be told from a wrong graph.
const MOST: f64 = 0.25;

impl Verifier<'_> {
    /// Small models with large activations are moved further than others: the limit is [`ROUNDINGS`] times what the rounding
    /// does to the median token in the interpreter, as the next power of two, since last digits differ from machine to machine.
    pub(super) fn bytes_limit(&mut self) -> Result<f64, VerifyError> {
        self.stage("rounding in f64");
        let row = self.prompts.rounded();
        let path = self.bundle.join(files::MODEL);
        let served = oracle::evaluate(&read_back(&path)?, &path, &row, Rounding::Activations)?;
        let plain = self.bundle.join(self.plain_forms().0);
        let (Ok(rounded), Ok(exact)) = (served, oracle::logits(&plain, &row, Rounding::Nothing)?) else {
            return Ok(LEAST);
        };
        Ok(limit_of(median_error(&rounded, &exact, exact.len() / row.len().max(1))))
    }
}

/// Of what rounding does to the median token; where that is no number, the least.
fn limit_of(error: f64) -> f64 {
    let limit = (ROUNDINGS * error).log2().ceil().exp2();
    if limit.is_nan() { LEAST } else { limit.clamp(LEAST, MOST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_further_may_be_further() {
        assert_eq!([0.0, 0.012, 0.03, 1.0, f64::NAN].map(limit_of), [0.05, 0.0625, 0.125, 0.25, 0.05]);
    }
}
