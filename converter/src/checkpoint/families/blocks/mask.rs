//! The additive mask of causal attention with left padding and a cache.

use crate::checkpoint::build::{Builder, Inputs};
use dijiang_format::dtype::DType;
use dijiang_passes::ir::graph::ValueId;
use dijiang_passes::ir::tensor::Tensor;

/// What is added to the score of a hidden key. It is finite, so that a row of padding that may look
/// at nothing stays finite too.
const HIDDEN: f64 = -1e30;

/// f32 `[batch, 1, sequence, past + sequence]`: 0 where query i may look at key j, which is where
/// `j <= past + i` and the token at j is no padding; a large negative number elsewhere.
pub(crate) fn mask_bias(b: &mut Builder<'_>, inputs: &Inputs) -> ValueId {
    let p = &mut b.p;
    p.set_scope("mask");
    let total = p.shape_of(inputs.mask, 1, 2);
    let sequence = p.shape_of(inputs.ids, 1, 2);
    let past = p.sub(total, sequence);
    let total = p.squeeze(total, &[0]);
    let sequence = p.squeeze(sequence, &[0]);
    let keys = p.range(total);
    let queries = p.range(sequence);
    let queries = p.add(queries, past);
    let queries = p.unsqueeze(queries, &[1]);
    let causal = p.less_or_equal(keys, queries);
    let one = p.scalar_like(inputs.mask, 1.0);
    let present = p.equal(inputs.mask, one);
    let present = p.unsqueeze(present, &[1, 2]);
    let visible = p.and(causal, present);
    let zero = p.constant("visible", Tensor::scalar(DType::F32, 0.0));
    let hidden = p.constant("hidden", Tensor::scalar(DType::F32, HIDDEN));
    p.select(visible, zero, hidden)
}
