//! *Matches:* the output of logits
//! *Becomes:* the same, and the likeliest next token as an output of its own
//! *Exact:* yes
//! *Declines:* graphs without logits

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::name_next::name_next;

#[derive(Debug)]
pub struct NameNext;

impl Pass for NameNext {
    fn name(&self) -> &'static str {
        "name_next"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Lowered]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        name_next(graph)?;
        Ok(())
    }
}
