//! The widths that ONNX Runtime's CUDA kernels for `LinearAttention` know. States of `prefill.onnx` and `decode.onnx` are
//! padded to them with zeros, and features of one token are cut into blocks of them.

/// What a state's features and its values are padded to a multiple of, in the order of its axes after batch and heads.
pub const STATE_MULTIPLES: [usize; 2] = [64, 32];

/// Features of a head that are computed fast, the better first.
pub const BLOCK_WIDTHS: [usize; 2] = [128, 64];

/// Tokens per chunk of `prefill.onnx`, whatever the recipe says for the other forms: a segment is whole chunks, or less
/// than one. Longer chunks have more scores and shorter ones more states to move; at usual widths both weigh about
/// the same there.
pub const PREFILL_CHUNK: u32 = 64;

/// The width in whole blocks, if that is less than twice as much.
pub fn padded(width: usize, block: usize) -> usize {
    let wide = width.next_multiple_of(block);
    if wide < 2 * width { wide } else { width }
}

/// The block of features that a head of so many is cut into; `None` where it is one block or no whole number of them.
pub fn feature_block(features: usize) -> Option<usize> {
    let block = BLOCK_WIDTHS.into_iter().find(|block| features.is_multiple_of(*block))?;
    (features > 0 && !BLOCK_WIDTHS.contains(&features)).then_some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_grow_to_whole_blocks_unless_they_would_double() {
        assert_eq!([40, 64, 65, 20].map(|width| padded(width, 64)), [64, 64, 128, 20]);
        assert_eq!([20, 16, 33].map(|width| padded(width, 32)), [32, 16, 64]);
    }

    #[test]
    fn features_of_several_blocks_are_cut_into_the_widest() {
        assert_eq!(
            [256, 192, 128, 64, 160, 0].map(feature_block),
            [Some(128), Some(64), None, None, None, None]
        );
    }
}
