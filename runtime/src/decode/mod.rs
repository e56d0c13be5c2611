//! Graphs driven token by token with their state: by host tensors, by a cache that grows, and by memory that is bound
//! once. What chooses among them for a bundle, and text, are in [`crate::serve`].

pub(crate) mod bound;
pub(crate) mod decoder;
pub(crate) mod growing;
pub(crate) mod identity;
pub(crate) mod layout;
pub(crate) mod state_file;
pub(crate) mod weight_file;
