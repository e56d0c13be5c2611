//! Weights as inputs, so that several graphs share one copy on a device.

use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::rebuild::{Rebuild, copy_constant, rebuild};

/// Makes inputs of the weights, by their names.
pub fn weights_as_inputs(graph: &Graph) -> Result<Graph, PatchError> {
    rebuild(graph, "weights_as_inputs", &mut WeightsAsInputs)
}

struct WeightsAsInputs;

impl Rebuild for WeightsAsInputs {
    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        match graph.value(id).is_weight {
            true => self.input(p, graph, id),
            false => copy_constant(p, graph, id),
        }
    }
}
