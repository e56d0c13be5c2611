//! How many layers may stay softmax within so many bytes of state.

use super::ConvertError;
use super::compile::{CompileOptions, compile_with};
use crate::bundle::states::{bytes_after, states};
use bytesize::ByteSize;
use dijiang_format::dtype::DType;
use dijiang_format::manifest::State;
use dijiang_format::recipe::Recipe;
use dijiang_format::target::Target;
use dijiang_passes::attention::rewrite::AddedWeights;
use dijiang_passes::ir::graph::Graph;
use std::fmt;
use std::str::FromStr;

/// Bytes of state that one sequence may have after so many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateBudget {
    pub bytes: u64,
    pub tokens: u64,
}

/// Tokens where none are said.
const TOKENS: u64 = 2048;

impl FromStr for StateBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (size, tokens) = match text.split_once('@') {
            Some((size, tokens)) => (size, tokens.parse().ok().filter(|tokens| *tokens > 0)),
            None => (text, Some(TOKENS)),
        };
        let bytes = size.parse().ok().map(|ByteSize(bytes)| bytes).filter(|bytes| *bytes > 0);
        match (bytes, tokens) {
            (Some(bytes), Some(tokens)) => Ok(Self { bytes, tokens }),
            _ => {
                Err("expected bytes of one sequence and the tokens after which, such as 8MiB@4096".to_owned())
            }
        }
    }
}

impl fmt::Display for StateBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {} tokens", ByteSize(self.bytes), self.tokens)
    }
}

/// A softmax model to be converted.
pub(super) struct Convertible<'a> {
    pub(super) graph: &'a Graph,
    /// The recipe with these layers softmax.
    pub(super) recipe: &'a dyn Fn(Vec<usize>) -> Recipe,
    /// Only these layers are converted; all where it is `None`.
    pub(super) layers: Option<&'a [usize]>,
    /// New parameters that are there already.
    pub(super) added: Option<&'a AddedWeights>,
    /// The type that a state is kept in, which the graph may have wider.
    pub(super) kept_in: &'a dyn Fn(&State) -> DType,
}

impl Convertible<'_> {
    /// Refuses a budget that neither the fewest nor the most layers are within.
    pub(super) fn check(&self, budget: StateBudget, layers: &[usize]) -> Result<(), ConvertError> {
        let most = layers.get(1..).unwrap_or_default().to_vec();
        let least = self.state_bytes(Vec::new(), budget.tokens)?.min(self.state_bytes(most, budget.tokens)?);
        match least <= budget.bytes {
            true => Ok(()),
            false => Err(ConvertError::StateBudget { budget, least }),
        }
    }

    /// The most layers of `count` that may stay softmax, but not all; `chosen` gives them by how many they are.
    pub(super) fn most_within(
        &self,
        budget: StateBudget,
        count: usize,
        chosen: impl Fn(usize) -> Vec<usize>,
    ) -> Result<usize, ConvertError> {
        let fits = |layers: usize| -> Result<bool, ConvertError> {
            Ok(self.state_bytes(chosen(layers), budget.tokens)? <= budget.bytes)
        };
        // After few tokens a cache is smaller than what would stand for it.
        let most = count.saturating_sub(1);
        if fits(most)? {
            return Ok(most);
        }
        let (mut within, mut beyond) = (0, most);
        while beyond - within > 1 {
            let middle = usize::midpoint(within, beyond);
            match fits(middle)? {
                true => within = middle,
                false => beyond = middle,
            }
        }
        Ok(within)
    }

    /// Bytes of one sequence's state, with these layers softmax.
    fn state_bytes(&self, layers: Vec<usize>, tokens: u64) -> Result<u64, ConvertError> {
        let recipe = (self.recipe)(layers);
        let options = CompileOptions { recipe: &recipe, target: Target::Ort, seed: 0, layers: self.layers };
        let model = compile_with(self.graph.clone(), &options, self.added)?.model;
        let states = states(&model);
        let kept: Vec<State> =
            states.into_iter().map(|state| State { dtype: (self.kept_in)(&state), ..state }).collect();
        Ok(bytes_after(&kept, tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::StateBudget;

    #[test]
    fn a_budget_is_a_size_and_tokens() {
        let read = |text: &str| text.parse::<StateBudget>();
        assert_eq!(read("8MiB@4096"), Ok(StateBudget { bytes: 8 << 20, tokens: 4096 }));
        assert_eq!(read("1000"), Ok(StateBudget { bytes: 1000, tokens: 2048 }));
        for wrong in ["", "8MiB@", "8MiB@0", "0@10", "@10", "few", "8MiB@4096@1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            read("8MiB@4096").map(|budget| budget.to_string()),
            Ok("8.0 MiB after 4096 tokens".to_owned())
        );
    }
}
