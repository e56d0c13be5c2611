//! *Matches:* the output of logits
//! *Becomes:* those of the last token of each row, `[batch, 1, vocabulary]`; rows are then padded at the right
//! *Exact:* yes, of those tokens
//! *Declines:* graphs without logits or without a mask

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::keep_last::keep_last;

#[derive(Debug)]
pub struct KeepLast;

impl Pass for KeepLast {
    fn name(&self) -> &'static str {
        "keep_last"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Lowered]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        keep_last(graph)?;
        Ok(())
    }
}
