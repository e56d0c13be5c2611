//! *Matches:* the output of logits
//! *Becomes:* those of one token of each row, `[batch, 1, vocabulary]`, which the new input `last_tokens` says
//! *Exact:* yes, of those tokens
//! *Declines:* graphs without logits

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::take_last::take_last;

#[derive(Debug)]
pub struct TakeLast;

impl Pass for TakeLast {
    fn name(&self) -> &'static str {
        "take_last"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Lowered]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        take_last(graph)?;
        Ok(())
    }
}
