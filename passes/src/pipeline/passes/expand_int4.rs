//! *Matches:* linear layers that read weights of four bits
//! *Becomes:* the weights worked out by standard operators, cleaned up
//! *Exact:* yes
//! *Declines:* graphs without such layers, which stay as they are

use crate::canon::canonicalize;
use crate::int4;
use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};

#[derive(Debug)]
pub struct ExpandInt4;

impl Pass for ExpandInt4 {
    fn name(&self) -> &'static str {
        "expand_int4"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Wide]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        // Last, as linear layers are recognised by their weights.
        if int4::expand(graph)? {
            canonicalize(graph)?;
        }
        Ok(())
    }
}
