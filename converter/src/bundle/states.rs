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

/// Bytes of the states of one sequence after so many tokens. Without a number of tokens, a state that grows with the text
/// is the error.
pub(crate) fn bytes_of_row(states: &[State], tokens: Option<u64>) -> Result<u64, &State> {
    let mut sum = 0u64;
    for state in states {
        // The first dim is that of sequences side by side.
        let mut numbers = 1u64;
        for extent in state.shape.iter().skip(1) {
            let size = match (extent, tokens) {
                (Extent::Known(size), _) => *size,
                (Extent::Open(_), Some(tokens)) => tokens,
                (Extent::Open(_), None) => return Err(state),
            };
            numbers = numbers.saturating_mul(size);
        }
        sum = sum.saturating_add(numbers.saturating_mul(state.dtype.size() as u64));
    }
    Ok(sum)
}
