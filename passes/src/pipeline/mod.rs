//! The order of everything: [`Pass`], the [pipelines](table) of every target and form as data, and the one driver that
//! runs them. What a pass does is in the room of its idea; here it gets a name, what it needs and what it ensures.

mod driver;
pub mod passes;
pub mod table;

pub use driver::{PassRun, PipelineError, pipeline, prepare, run};

use crate::attention::rewrite::{AddedWeights, Report, RewriteError};
use crate::canon::CanonError;
use crate::ir::graph::Graph;
use crate::ir::patch::PatchError;
use dijiang_format::recipe::Recipe;
use std::fmt;

/// What may hold of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// Spelled in the plain operators that patterns and fusions know, with nothing left to clean up. An attention that
    /// was written as one operator of ONNX Runtime counts as clean: the clean-ups are for what a source spells so, and
    /// would take it apart again.
    Canonical,
    /// Attention sites are written as the recipe and the form say.
    Lowered,
    /// Computes in f32.
    Wide,
    /// One token per row, none of them padding.
    OneToken,
    /// Holds its weights, as constants.
    Weights,
    /// In operators that ONNX Runtime computes in one kernel.
    Fused,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Canonical => "canonical",
            Self::Lowered => "lowered",
            Self::Wide => "wide",
            Self::OneToken => "one token",
            Self::Weights => "weights",
            Self::Fused => "fused",
        })
    }
}

/// A change of a whole graph. Passes hold no state.
pub trait Pass: Sync {
    /// The file's name.
    fn name(&self) -> &'static str;

    /// What must hold of the graph.
    fn needs(&self) -> &'static [Property] {
        &[]
    }

    /// What holds of it afterwards.
    fn ensures(&self) -> &'static [Property] {
        &[]
    }

    /// What no longer holds of it.
    fn ends(&self) -> &'static [Property] {
        &[]
    }

    fn run(&self, graph: &mut Graph, conversion: &mut Conversion<'_>) -> Result<(), PassError>;
}

/// One conversion: what passes read besides the graph, and what they found.
#[derive(Debug, Clone)]
pub struct Conversion<'a> {
    pub recipe: &'a Recipe,
    pub seed: u64,
    /// Layers to rewrite; all where it is `None`.
    pub layers: Option<&'a [usize]>,
    /// New parameters that are there already, by name; others are new.
    pub added: Option<&'a AddedWeights>,
    pub report: Report,
}

/// A pass failed; the graph is as after its last whole patch.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error(transparent)]
    Patch(#[from] PatchError),
}
