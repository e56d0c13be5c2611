//! What only serving needs of a graph: one token per call, the last token's logits, the likeliest next token, weights as
//! inputs, joined weights, and states whose widths the fast kernels of a runtime have. How a recurrence is written is in
//! [`crate::attention::lower`]; which operators a runtime has fused is in [`crate::fuse`].

pub mod cut_features;
pub mod join_weights;
pub mod keep_last;
pub mod name_next;
pub mod one_token;
pub mod pad_states;
pub mod take_last;
pub mod weights_as_inputs;
pub mod wide_integers;
