//! Calls of one token per row, which is never padding.

use crate::ir::graph::Graph;
use crate::ir::infer::Type;
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use dijiang_format::names::{IDS, MASK, POSITIONS};

/// States that each call brings one token per row, which is never padding.
pub fn one_token(graph: &mut Graph) -> Result<(), PatchError> {
    state_lengths(graph)?;
    graph.refresh_types()?;
    drop_mask(graph)?;
    graph.refresh_types()
}

fn state_lengths(graph: &mut Graph) -> Result<(), PatchError> {
    let change = {
        let mut p = Patch::new(graph, "one_token");
        for input in graph.inputs() {
            let value = graph.value(*input);
            let (Some(dtype), Some([batch, _])) = (value.ty.dtype, value.ty.shape.as_deref()) else {
                continue;
            };
            if [IDS, MASK, POSITIONS].contains(&value.name.as_str()) {
                p.set_input_type(*input, Type::new(dtype, vec![batch.clone(), Dim::Known(1)]));
            }
        }
        p.finish()
    };
    graph.apply(change).map(|_| ())
}

fn drop_mask(graph: &mut Graph) -> Result<(), PatchError> {
    let (Some(ids), Some(mask)) = (graph.input(IDS), graph.input(MASK)) else { return Ok(()) };
    let change = {
        let mut p = Patch::new(graph, "drop_mask");
        p.set_scope(MASK);
        let one = p.scalar_like(mask, 1.0);
        let shape = p.shape_of(ids, 0, 2);
        let ones = p.expand(one, shape);
        p.replace(mask, ones);
        p.drop_input(mask);
        p.finish()
    };
    graph.apply(change).map(|_| ())
}
