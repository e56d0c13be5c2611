//! A bundle served: its graph chosen, tokens sampled, text in and out.

pub(crate) mod generate;
pub(crate) mod pieces;
pub(crate) mod sample;
pub(crate) mod serving;
pub(crate) mod text;
