//! Logits of one token of each row alone, of which an input says where it stands.
//!
//! *Exact:* the logits of these tokens are those of the graph before.

use super::keep_last::keep;
use crate::ir::graph::Graph;
use crate::ir::patch::PatchError;
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, LAST};

/// Leaves of the logits those after the token of each row that the new input [`LAST`] says, `[batch, 1, vocabulary]`.
pub fn take_last(graph: &mut Graph) -> Result<(), PatchError> {
    let batch = graph.input(IDS).and_then(|ids| graph.value(ids).ty.shape.as_ref()?.first().cloned());
    let Some(batch) = batch else { return Ok(()) };
    keep(graph, "take_last", |p, x| {
        let last = p.input(LAST, DType::I64, vec![batch, 1.into()]);
        let width = p.rank(x) - 1;
        let width = p.known_dim(x, width) as i64;
        let flat = p.reshape(x, &[-1, width]);
        p.gather(flat, last, 0)
    })
}
