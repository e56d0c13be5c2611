//! Exact clean-ups, one law per file. Each sweep of a law is one patch; laws run in the order of the
//! table until nothing changes.

use crate::ir::graph::Graph;
use crate::ir::patch::{Applied, PatchError};

mod common_subexpression;
mod reshape_reshape;
mod transpose_transpose;

/// An exact rewrite: what it leaves computes the same numbers.
pub trait Law: Sync {
    /// The file's name.
    fn name(&self) -> &'static str;

    /// One sweep over the graph; `None` where there was nothing to do.
    fn sweep(&self, graph: &mut Graph) -> Result<Option<Applied>, PatchError>;
}

/// All laws, in the order they run.
pub static LAWS: &[&dyn Law] = &[
    &transpose_transpose::TransposeTranspose,
    &reshape_reshape::ReshapeReshape,
    &common_subexpression::CommonSubexpression,
];

/// Rounds over all laws after which a graph must have settled.
const MAX_ROUNDS: usize = 16;

/// The laws do not come to an end, or one of them is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CanonError {
    #[error("the clean-ups did not settle in {MAX_ROUNDS} rounds; these still change the graph: {laws}")]
    Unsettled { laws: String },
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// Applies all laws until none changes the graph. Returns the number of patches.
pub fn canonicalize(graph: &mut Graph) -> Result<usize, CanonError> {
    let mut patches = 0;
    let mut changed = Vec::new();
    for _ in 0..MAX_ROUNDS {
        changed.clear();
        graph.refresh_types()?;
        for law in LAWS {
            if law.sweep(graph)?.is_some() {
                changed.push(law.name());
                patches += 1;
            }
        }
        if changed.is_empty() {
            return Ok(patches);
        }
    }
    Err(CanonError::Unsettled { laws: changed.join(", ") })
}

#[cfg(test)]
mod tests;
