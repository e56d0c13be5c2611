//! Every pass, one per file, named as its file. The work is done in the room of its idea.

mod canonicalize;
mod cut_features;
mod expand_int4;
mod fuse;
mod group_softmax;
mod join_weights;
mod keep_last;
mod linearize;
mod name_next;
mod one_token;
mod pad_states;
mod take_last;
mod weights_as_inputs;
mod wide_integers;
mod widen;

pub use canonicalize::Canonicalize;
pub use cut_features::CutFeatures;
pub use expand_int4::ExpandInt4;
pub use fuse::Fuse;
pub use group_softmax::GroupSoftmax;
pub use join_weights::JoinWeights;
pub use keep_last::KeepLast;
pub use linearize::{Linearize, Written};
pub use name_next::NameNext;
pub use one_token::OneToken;
pub use pad_states::PadStates;
pub use take_last::TakeLast;
pub use weights_as_inputs::WeightsAsInputs;
pub use wide_integers::WideIntegers;
pub use widen::Widen;

#[cfg(test)]
mod tests {
    use super::super::table::{DECODED, DECODED_ON_GPU, PIPELINES, PREPARE};
    use crate::testing::file_stems;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_is_a_pass_of_a_pipeline() {
        let rows = PIPELINES.iter().map(|row| row.passes).chain([PREPARE, DECODED, DECODED_ON_GPU]);
        let names: BTreeSet<&str> = rows.flatten().map(|pass| pass.name()).collect();
        assert_eq!(file_stems("src/pipeline/passes"), names.into_iter().collect::<Vec<_>>());
    }
}
