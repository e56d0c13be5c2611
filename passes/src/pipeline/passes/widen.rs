//! *Matches:* arithmetic in f16 and bf16
//! *Becomes:* the same in f32, cleaned up; weights stay as they are stored and are cast where they are read
//! *Exact:* what it computes is the model without the rounding of its activations
//! *Declines:* nothing

use crate::canon::canonicalize;
use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::precision::widen::widen;

#[derive(Debug)]
pub struct Widen;

impl Pass for Widen {
    fn name(&self) -> &'static str {
        "widen"
    }

    fn ensures(&self) -> &'static [Property] {
        &[Property::Canonical, Property::Wide]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        *graph = widen(graph)?;
        canonicalize(graph)?;
        Ok(())
    }
}
