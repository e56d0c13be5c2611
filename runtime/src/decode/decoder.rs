//! What all decoders have in common: sequences side by side, fed by prompts and token by token.

use std::fmt::Debug;

use crate::decode::rows::width;
use crate::decode::state::DecoderState;
use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;

/// A causal language model that decodes some sequences side by side. All commands that decode run over this trait.
pub trait Decoder: Debug + Send {
    /// Forgets everything, and decodes this many sequences from here on.
    fn start(&mut self, batch: usize) -> Result<(), RuntimeError>;

    /// Feeds one prompt per row, as long as each may be, after what was fed before. Returns the likeliest next token of
    /// each row, or -1 where logits of a row are NaN.
    fn prefill(&mut self, prompts: &[Vec<i64>]) -> Result<Vec<i64>, RuntimeError>;

    /// Feeds one token per row. Returns as [`Decoder::prefill`] does.
    fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError>;

    /// The logits after each row's last token, f32 `[batch, vocabulary]`; an error before the first token.
    fn logits(&self) -> Result<HostTensor, RuntimeError>;

    /// A copy of what the decoder remembers.
    fn state(&self) -> Result<DecoderState, RuntimeError>;

    /// Continues from a remembered state, with the logits after its last tokens where they are known. An error leaves
    /// everything as it was.
    fn set_state(&mut self, state: DecoderState, logits: Option<HostTensor>) -> Result<(), RuntimeError>;

    /// Bytes that the states of all rows take now: a cache as far as it is filled.
    fn state_bytes(&self) -> usize;

    /// Token columns fed so far, padding included.
    fn columns(&self) -> usize;

    /// Sequences decoded side by side.
    fn batch(&self) -> usize;

    /// Makes room for this many token columns in all. A state that keeps its size needs none.
    fn reserve(&mut self, _columns: usize) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Declares that this many token columns came before, whatever the state holds. For measuring: the time of a step
    /// does not depend on the numbers.
    fn skip_to(&mut self, columns: usize) -> Result<(), RuntimeError>;

    /// How texts that begin alike are best fed.
    fn branching(&self) -> Branching {
        Branching::Together
    }

    /// Goes through rows as [`Decoder::prefill`] does, and tells what each token was after those before it. The first
    /// token after a start has nothing before it and is left out. Rows are not fed to their ends: the state afterwards is
    /// of no use.
    fn score(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Vec<Scored>>, RuntimeError> {
        let mut scores = vec![Vec::new(); rows.len()];
        let columns = width(rows);
        for column in 0..columns {
            if self.columns() > 0 {
                let logits = self.logits()?;
                let numbers = logits.to_f32()?;
                let each = numbers.chunks(logits.shape()[1].max(1));
                for ((score, row), logits) in scores.iter_mut().zip(rows).zip(each) {
                    if let Some(token) = row.get(column) {
                        score.push(Scored::of(logits, *token)?);
                    }
                }
            }
            if column + 1 < columns {
                let tokens: Vec<i64> = rows.iter().map(|row| row.get(column).copied().unwrap_or(0)).collect();
                self.decode(&tokens)?;
            }
        }
        Ok(scores)
    }
}

/// How a decoder goes on from one state in several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branching {
    /// As rows side by side, each of its own length.
    Together,
    /// One way after the other, since rows that have a past cost a call for each of their tokens.
    Alone,
    /// Not at all: there is no state.
    Never,
}

/// What a token was, after those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The natural logarithm of its probability.
    pub log_probability: f64,
    /// Whether [`greedy`](crate::decode::greedy::greedy) choice falls on it.
    pub is_likeliest: bool,
}

impl Scored {
    pub(crate) fn of(logits: &[f32], token: i64) -> Result<Self, RuntimeError> {
        let log_probability = log_probability(logits, token)?;
        let chosen = logits[token as usize];
        // The lowest id of a tie is the likeliest.
        let (before, from) = logits.split_at(token as usize);
        let is_likeliest =
            before.iter().all(|other| *other < chosen) && from.iter().all(|other| *other <= chosen);
        Ok(Self { log_probability, is_likeliest })
    }
}

/// ln softmax(logits)\[token\], with the sum in f64.
fn log_probability(logits: &[f32], token: i64) -> Result<f64, RuntimeError> {
    let chosen = usize::try_from(token).ok().and_then(|token| logits.get(token));
    let chosen = chosen.ok_or_else(|| RuntimeError::BadCall {
        place: "input_ids",
        reason: format!("token {token} was given, and the logits are of {} tokens", logits.len()),
    })?;
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Terms are of f32, whose rounding is far below that of the logits themselves.
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
    Ok(f64::from(chosen - largest) - sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_all_tokens_come_to_one() {
        let logits = [1.5, -2.0, 300.0, 299.0];
        let sum: f64 = (0..4).map(|token| log_probability(&logits, token).expect("a token").exp()).sum();
        assert!((sum - 1.0).abs() < 1e-7, "{sum}");
        // ln(1 / (1 + 1/e))
        assert!((log_probability(&logits, 2).expect("a token") + 0.313_261_69).abs() < 1e-6);
        assert!(log_probability(&[f32::NAN, 1.0], 1).expect("a token").is_nan());
        let likeliest = |token| Scored::of(&[1.0, 3.0, 3.0, 2.0], token).expect("a token").is_likeliest;
        assert_eq!([0, 1, 2, 3].map(likeliest), [false, true, false, false]);
        for token in [-1, 4] {
            let refused = log_probability(&logits, token).expect_err("it is no token").to_string();
            assert_eq!(
                refused,
                format!("input_ids: token {token} was given, and the logits are of 4 tokens")
            );
        }
    }
}
