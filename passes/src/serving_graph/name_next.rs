//! The likeliest next token as an output, so that a few bytes come back instead of all logits.

use crate::ir::graph::Graph;
use crate::ir::op::Op;
use crate::ir::patch::{Patch, PatchError};
use dijiang_format::dtype::DType;
use dijiang_format::names::{LOGITS, NEXT};

/// Adds [`NEXT`].
pub fn name_next(graph: &mut Graph) -> Result<(), PatchError> {
    let Some(logits) = graph.output(LOGITS) else { return Ok(()) };
    let change = {
        let mut p = Patch::new(graph, "name_next");
        p.set_scope(NEXT);
        // No device compares bf16.
        let wide = p.cast(logits, DType::F32);
        let best = p.node(Op::new("ArgMax").with("axis", -1i64).with("keepdims", 0i64), &[wide]);
        // A sum is NaN where a term is, and whatever is compared with NaN is not.
        let sum = p.reduce("ReduceSum", wide, &[-1], false);
        let lost = p.node(Op::new("IsNaN"), &[sum]);
        let none = p.scalar_like(best, -1.0);
        let next = p.select(lost, none, best);
        p.output(NEXT, next);
        p.finish()
    };
    graph.apply(change).map(|_| ())
}
