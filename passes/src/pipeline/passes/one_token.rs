//! *Matches:* inputs of tokens
//! *Becomes:* inputs of one token per row, which is never padding; no mask
//! *Exact:* yes, of such rows
//! *Declines:* nothing

use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use crate::serving_graph::one_token::one_token;

#[derive(Debug)]
pub struct OneToken;

impl Pass for OneToken {
    fn name(&self) -> &'static str {
        "one_token"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Lowered]
    }

    fn ensures(&self) -> &'static [Property] {
        &[Property::OneToken]
    }

    fn ends(&self) -> &'static [Property] {
        &[Property::Canonical]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        one_token(graph)?;
        Ok(())
    }
}
