//! *Matches:* weights
//! *Becomes:* inputs of the graph by their names, so that several graphs share one copy
//! *Exact:* yes
//! *Declines:* constants that are no weights

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::weights_as_inputs::weights_as_inputs;

#[derive(Debug)]
pub struct WeightsAsInputs;

impl Pass for WeightsAsInputs {
    fn name(&self) -> &'static str {
        "weights_as_inputs"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Weights]
    }

    fn ends(&self) -> &'static [Property] {
        &[Property::Weights]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        *graph = weights_as_inputs(graph)?;
        Ok(())
    }
}
