//! What runs a bundle that is measured: the bundle's own serving, where it has graphs for the device, or its one
//! graph with everything bound.

use super::BenchOptions;
use dijiang_runtime::{GrowingDecoder, RuntimeError, Serving};

#[derive(Debug)]
pub(super) enum Engine {
    Served(Box<Serving>),
    Bound(Box<GrowingDecoder>),
}

impl Engine {
    pub(super) fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        match self {
            Self::Served(serving) => serving.start(batch),
            Self::Bound(decoder) => decoder.start(batch),
        }
    }

    /// What is served keeps its size, so that how much came before is nothing to it.
    pub(super) fn skip_to(&mut self, length: usize) -> Result<(), RuntimeError> {
        match self {
            Self::Served(_) => Ok(()),
            Self::Bound(decoder) => decoder.skip_to(length),
        }
    }

    pub(super) fn prefill(
        &mut self,
        prompts: &[Vec<i64>],
        options: &BenchOptions,
    ) -> Result<Vec<i64>, RuntimeError> {
        match self {
            Self::Served(serving) => serving.prefill(prompts),
            Self::Bound(decoder) => decoder.prefill(prompts, options.segment),
        }
    }

    pub(super) fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        match self {
            Self::Served(serving) => serving.decode(tokens),
            Self::Bound(decoder) => decoder.decode(tokens),
        }
    }

    pub(super) fn state_bytes(&self) -> usize {
        match self {
            Self::Served(serving) => serving.state_bytes(),
            Self::Bound(decoder) => decoder.state_bytes(),
        }
    }

    /// Bytes of the state that a step reads at a context: a cache as far as it is filled, and of two buffers one.
    pub(super) fn read_bytes(&self, context: usize, capacity: usize) -> f64 {
        let state = self.state_bytes() as f64;
        match self {
            Self::Served(_) => state,
            Self::Bound(decoder) if decoder.grows() => state * context as f64 / capacity as f64,
            Self::Bound(_) => state / 2.0,
        }
    }
}
