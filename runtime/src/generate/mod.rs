//! Text from a bundle: which decoder serves it, tokens chosen, text in and out.

pub(crate) mod continuation;
pub(crate) mod pieces;
pub(crate) mod sample;
pub(crate) mod serving;
pub(crate) mod text;
