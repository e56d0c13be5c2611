//! Logits of the last token of each row alone.
//!
//! *Exact:* the logits of the last token of each row are those of the graph before.

use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::walk::is_made_of_constants;
use dijiang_format::dtype::DType;
use dijiang_format::names::{LOGITS, MASK};

/// Leaves of the logits those after the last token of each row, `[batch, 1, vocabulary]`, by the mask of the call; rows
/// are then padded at the right.
pub fn keep_last(graph: &mut Graph) -> Result<(), PatchError> {
    let Some(mask) = graph.input(MASK) else { return Ok(()) };
    keep(graph, "keep_last", |p, x| at_last(p, x, mask))
}

/// Lets `choose` leave one token of each row before the last product, or of the logits where there is none.
pub(super) fn keep(
    graph: &mut Graph,
    rule: &'static str,
    choose: impl FnOnce(&mut Patch<'_>, ValueId) -> ValueId,
) -> Result<(), PatchError> {
    let Some(logits) = graph.output(LOGITS) else { return Ok(()) };
    let head = graph
        .made_by(logits, "MatMul")
        .cloned()
        .filter(|head| head.input(1).is_some_and(|weight| is_made_of_constants(graph, weight)));
    let change = {
        let mut p = Patch::new(graph, rule);
        p.set_scope("last");
        let kept = match head.as_ref().and_then(|head| Some((head.input(0)?, head.input(1)?))) {
            Some((hidden, weight)) => {
                let hidden = choose(&mut p, hidden);
                p.matmul(hidden, weight)
            }
            None => choose(&mut p, logits),
        };
        p.drop_output(LOGITS);
        p.output(LOGITS, kept);
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

/// `[batch, sequence, ·]` → `[batch, 1, ·]`: a product with a row of zeros and a one, which any device has.
fn at_last(p: &mut Patch<'_>, x: ValueId, mask: ValueId) -> ValueId {
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
