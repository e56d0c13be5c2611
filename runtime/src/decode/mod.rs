//! Causal language models driven token by token with their state, behind the trait [`decoder::Decoder`]: by host tensors
//! ([`host`]), by buffers where it is computed ([`growing`]), and by graphs whose weights and states are bound once
//! ([`bound`]). Which one serves a bundle is chosen in [`crate::generate`].

pub(crate) mod bound;
pub(crate) mod computed_weight;
pub(crate) mod decoder;
pub(crate) mod greedy;
pub(crate) mod growing;
pub(crate) mod host;
pub(crate) mod identity;
pub(crate) mod integers;
pub(crate) mod layout;
pub(crate) mod ring;
pub(crate) mod rows;
pub(crate) mod state;
pub(crate) mod state_file;
pub(crate) mod weight_file;
