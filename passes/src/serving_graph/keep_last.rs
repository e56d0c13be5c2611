//! Logits of the last token of each row alone.
//!
//! *Exact:* the logits of the last token of each row are those of the graph before.

use crate::attention::lower::tokens_first::recent_tokens;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::walk::is_made_of_constants;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LOGITS, MASK};

/// Leaves of the logits those after the last token of each row, `[batch, 1, vocabulary]`; rows are then padded at the
/// right. Without a mask nothing is padding.
pub fn keep_last(graph: &mut Graph) -> Result<(), PatchError> {
    let Some(logits) = graph.output(LOGITS) else { return Ok(()) };
    let mask = graph.input(MASK);
    let head = graph
        .made_by(logits, "MatMul")
        .cloned()
        .filter(|head| head.input(1).is_some_and(|weight| is_made_of_constants(graph, weight)));
    // Of a mask of all tokens, the past included, the last ones are those of the call.
    let calls = graph.input(IDS).filter(|ids| mask.is_some_and(|mask| differ(graph, *ids, mask)));
    let change = {
        let mut p = Patch::new(graph, "keep_last");
        p.set_scope("last");
        let mask = match (mask, calls) {
            (Some(mask), Some(ids)) => Some(recent_tokens(&mut p, mask, ids)),
            (mask, _) => mask,
        };
        match head.as_ref().and_then(|head| Some((head.input(0)?, head.input(1)?))) {
            Some((hidden, weight)) => {
                let hidden = at_last(&mut p, hidden, mask);
                let kept = p.matmul(hidden, weight);
                p.drop_output(LOGITS);
                p.output(LOGITS, kept);
            }
            None => {
                let kept = at_last(&mut p, logits, mask);
                p.drop_output(LOGITS);
                p.output(LOGITS, kept);
            }
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

/// Whether two inputs have different numbers of columns.
fn differ(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    let columns = |id: ValueId| graph.value(id).ty.shape.as_deref().and_then(|dims| dims.get(1).cloned());
    columns(a) != columns(b)
}

/// `[batch, sequence, ·]` → `[batch, 1, ·]`: a product with a row of zeros and a one, which any device has.
fn at_last(p: &mut Patch<'_>, x: ValueId, mask: Option<ValueId>) -> ValueId {
    let Some(mask) = mask else { return p.slice(x, 1, -1, i64::MAX) };
    let tokens = p.cast(mask, DType::I64);
    let count = p.reduce("ReduceSum", tokens, &[1], true);
    let last = p.add_scalar(count, -1.0);
    let length = p.shape_of(x, 1, 2);
    let length = p.squeeze(length, &[0]);
    let places = p.range(length);
    let chosen = p.node(Op::new("Equal"), &[places, last]);
    let dtype = p.dtype(x);
    let chosen = p.cast(chosen, dtype);
    let chosen = p.unsqueeze(chosen, &[1]);
    p.matmul(chosen, x)
}
