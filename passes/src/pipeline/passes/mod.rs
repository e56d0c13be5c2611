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
pub use widen::Widen;

/// Every pass, in the order of the files.
pub static PASSES: &[&dyn super::Pass] = &[
    &Canonicalize,
    &CutFeatures,
    &ExpandInt4,
    &Fuse::Served,
    &GroupSoftmax,
    &JoinWeights,
    &KeepLast,
    &Linearize(Written::Chunked),
    &NameNext,
    &OneToken,
    &PadStates,
    &TakeLast,
    &WeightsAsInputs,
    &Widen,
];

#[cfg(test)]
mod tests {
    use super::super::table::{DECODED_ON_GPU, PIPELINES, PREPARE};
    use super::*;
    use crate::testing::file_stems;

    #[test]
    fn every_file_is_in_the_table_and_every_pass_in_a_pipeline() {
        let names: Vec<&str> = PASSES.iter().map(|pass| pass.name()).collect();
        assert_eq!(file_stems("src/pipeline/passes"), names);
        for name in names {
            let used = PREPARE
                .iter()
                .chain(DECODED_ON_GPU)
                .chain(PIPELINES.iter().flat_map(|row| row.passes))
                .any(|p| p.name() == name);
            assert!(used, "no pipeline has {name}");
        }
    }
}
