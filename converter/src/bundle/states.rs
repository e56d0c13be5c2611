//! The states of a serving graph as the manifest has them.

use dijiang_format::manifest::{Extent, State};
use dijiang_format::names::PAST;
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::shape::Dim;

/// What the serving graph carries from call to call.
pub(crate) fn states(graph: &Graph) -> Vec<State> {
    let inputs = graph.inputs().iter().map(|v| graph.value(*v));
    inputs
        .filter(|v| v.name.starts_with(PAST))
        .filter_map(|v| {
            Some(State {
                name: v.name.clone(),
                shape: v.ty.shape.iter().flatten().map(extent).collect(),
                dtype: v.ty.dtype?,
            })
        })
        .collect()
}

fn extent(dim: &Dim) -> Extent {
    match dim.known() {
        Some(n) => Extent::Known(n),
        None => Extent::Open(dim.to_string()),
    }
}
