//! Serving graphs for memory that a runtime binds once: weights as inputs, joined weights, states of the widths that
//! kernels know. How a recurrence is written is in [`crate::attention::lower`], which operators a runtime has fused is
//! in [`crate::fuse`].

pub mod bind;
pub mod feature_blocks;
pub mod joined;
pub mod state_padding;
