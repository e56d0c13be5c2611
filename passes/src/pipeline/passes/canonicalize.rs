//! *Matches:* operators in other spellings than the plain one, see the rules of [`crate::canon`]
//! *Becomes:* the plain spelling
//! *Exact:* yes
//! *Declines:* nothing; it is an error where the rules do not settle

use crate::canon::canonicalize;
use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};

#[derive(Debug)]
pub struct Canonicalize;

impl Pass for Canonicalize {
    fn name(&self) -> &'static str {
        "canonicalize"
    }

    fn ensures(&self) -> &'static [Property] {
        &[Property::Canonical]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        canonicalize(graph)?;
        Ok(())
    }
}
