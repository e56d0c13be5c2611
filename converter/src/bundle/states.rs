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

/// Bytes of the states of one sequence, where none of them grows with the text; the first that does is the error.
pub(crate) fn constant_bytes(states: &[State]) -> Result<u64, &State> {
    let grows = |state: &&State| state.shape.iter().skip(1).any(|extent| matches!(extent, Extent::Open(_)));
    match states.iter().find(grows) {
        Some(state) => Err(state),
        None => Ok(bytes_after(states, 0)),
    }
}

/// Bytes of the states of one sequence after so many tokens.
pub(crate) fn bytes_after(states: &[State], tokens: u64) -> u64 {
    // The first dim is that of sequences side by side.
    let size = |extent: &Extent| match extent {
        Extent::Known(size) => *size,
        Extent::Open(_) => tokens,
    };
    let bytes = |state: &State| {
        let numbers = state.shape.iter().skip(1).map(size).fold(1u64, u64::saturating_mul);
        numbers.saturating_mul(state.dtype.size() as u64)
    };
    states.iter().map(bytes).fold(0, u64::saturating_add)
}
