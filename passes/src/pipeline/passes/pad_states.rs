//! *Matches:* states whose widths CUDA kernels do not know
//! *Becomes:* states of whole blocks, zeros behind the model's own numbers
//! *Exact:* yes
//! *Declines:* widths that would double

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::pad_states::pad_states;

#[derive(Debug)]
pub struct PadStates;

impl Pass for PadStates {
    fn name(&self) -> &'static str {
        "pad_states"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Lowered]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        pad_states(graph)?;
        Ok(())
    }
}
