//! Columns of ones after the values, which carry the normaliser with the sum.

use super::{Dims, RecurrentState};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;

/// How many: products of rows of multiples of 8 run fastest on a GPU.
pub(super) const ONES: i64 = 8;

/// Of values with their ones, where there are any.
pub(super) fn width(d: Dims) -> i64 {
    if d.divides { d.value_dim + ONES } else { d.value_dim }
}

/// `[…, value_dim]` → `[…, width]`
pub(super) fn with_ones(p: &mut Patch<'_>, v: ValueId, d: Dims) -> ValueId {
    if !d.divides {
        return v;
    }
    let dtype = p.dtype(v);
    let one = p.constant("one", Tensor::scalar(dtype, 1.0));
    spread_after(p, v, one)
}

/// S with z as the same columns, `[batch, kv_heads, m, width]`.
pub(super) fn joined(p: &mut Patch<'_>, state: RecurrentState) -> ValueId {
    let Some(z) = state.z else { return state.s };
    let z = p.unsqueeze(z, &[3]);
    spread_after(p, state.s, z)
}

/// `x` with ONES columns of `column` after its last axis.
fn spread_after(p: &mut Patch<'_>, x: ValueId, column: ValueId) -> ValueId {
    let last = p.rank(x) as i64 - 1;
    let lead = p.shape_of(x, 0, last);
    let ones = p.ints(&[ONES]);
    let shape = p.concat(&[lead, ones], 0);
    let columns = p.expand(column, shape);
    p.concat(&[x, columns], -1)
}
