//! *Matches:* softmax attentions that all have a cache and one mask, where the recipe keeps them all
//! *Becomes:* `com.microsoft::GroupQueryAttention`
//! *Exact:* up to rounding
//! *Declines:* recipes with linear attention, whose bundles take a batch by segments: behind a past the operator takes
//! one token a call of several rows; graphs with another kind of attention, of which a note says why

use crate::attention::lower::grouped::group;
use crate::attention::rewrite::drop_unused_inputs;
use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use dijiang_format::recipe::Attention;

#[derive(Debug)]
pub struct GroupSoftmax;

impl Pass for GroupSoftmax {
    fn name(&self) -> &'static str {
        "group_softmax"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Canonical, Property::Lowered]
    }

    fn run(&self, graph: &mut Graph, conversion: &mut Conversion<'_>) -> Result<(), PassError> {
        if conversion.recipe.attention != Attention::Softmax {
            return Ok(());
        }
        let report = &mut conversion.report;
        match group(graph)? {
            Some(reason) => {
                report.notes.push(format!("softmax attention stays in plain operators: {reason}"));
            }
            None => report.dropped_inputs.extend(drop_unused_inputs(graph)?),
        }
        Ok(())
    }
}
