//! tract, the runtime that is built in.

pub(crate) mod runtime;
pub(crate) mod types;
