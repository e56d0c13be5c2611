//! *Matches:* what is computed of weights alone, or is weights one after the other
//! *Becomes:* one input for all of them, named by what it is made of
//! *Exact:* up to rounding: what is computed is computed in f32, as the graph loads
//! *Declines:* what holds more than weights

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::join_weights::as_inputs;

#[derive(Debug)]
pub struct JoinWeights;

impl Pass for JoinWeights {
    fn name(&self) -> &'static str {
        "join_weights"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Weights]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        as_inputs(graph)?;
        Ok(())
    }
}
