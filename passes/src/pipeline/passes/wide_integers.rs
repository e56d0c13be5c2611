//! *Matches:* inputs of tokens, masks and positions of 32 bits
//! *Becomes:* the same of 64 bits, cast back
//! *Exact:* yes
//! *Declines:* nothing

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError};
use crate::serving_graph::wide_integers::wide_integers;

#[derive(Debug)]
pub struct WideIntegers;

impl Pass for WideIntegers {
    fn name(&self) -> &'static str {
        "wide_integers"
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        wide_integers(graph)?;
        Ok(())
    }
}
