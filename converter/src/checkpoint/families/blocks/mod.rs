//! The parts that families share. Attention, mask and rotary positions have one form in all of them,
//! which is what the attention patterns look for.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod decoder;
pub(super) mod mask;
pub(super) mod norm;
pub(super) mod rope;
pub(super) mod window;
