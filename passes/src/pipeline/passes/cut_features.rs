//! *Matches:* `LinearAttention` of one token whose features are several blocks of a size that CUDA kernels know
//! *Becomes:* one head for each block
//! *Exact:* up to the order of summation
//! *Declines:* features of one block, or of no whole number of them

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::cut_features::cut_features;

#[derive(Debug)]
pub struct CutFeatures;

impl Pass for CutFeatures {
    fn name(&self) -> &'static str {
        "cut_features"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Lowered, Property::OneToken]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        cut_features(graph)?;
        Ok(())
    }
}
