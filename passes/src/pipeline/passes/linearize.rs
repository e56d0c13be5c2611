//! *Matches:* attention sites, see [`crate::attention::patterns`]
//! *Becomes:* the recurrence of the recipe in one of its forms, with a state of fixed size for the cache
//! *Exact:* no; how far it is from softmax is measured and reported
//! *Declines:* sites that the recipe or the call keeps, and those without what the recipe reads; the report says why

use crate::attention::lower::Form;
use crate::attention::rewrite::{Options, rewrite};
use crate::ir::graph::Graph;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use dijiang_format::recipe::Recipe;
use dijiang_format::widths::PREFILL_CHUNK;

/// How the recurrence is written.
#[derive(Debug, Clone, Copy)]
pub enum Written {
    /// ONNX Runtime's own operator.
    OrtOperator,
    /// The same for calls of one token per row, which is never padding.
    OneToken,
    /// The standard operator of opset 27.
    Operator,
    /// Plain operators, in chunks as long as the recipe says.
    Chunked,
    /// Plain operators, all tokens at once.
    Parallel,
    /// Plain operators for a device, in chunks of `prefill.onnx`.
    Segments,
}

impl Written {
    fn form(self, recipe: &Recipe) -> Form {
        match self {
            Self::OrtOperator => Form::Operator("com.microsoft"),
            Self::OneToken => Form::OneToken("com.microsoft"),
            Self::Operator => Form::Operator(""),
            Self::Chunked => Form::Chunked(recipe.chunk),
            Self::Parallel => Form::Parallel,
            Self::Segments => Form::Segment(PREFILL_CHUNK),
        }
    }
}

#[derive(Debug)]
pub struct Linearize(pub Written);

impl Pass for Linearize {
    fn name(&self) -> &'static str {
        "linearize"
    }

    fn needs(&self) -> &'static [Property] {
        &[Property::Canonical]
    }

    fn ensures(&self) -> &'static [Property] {
        &[Property::Lowered]
    }

    fn ends(&self) -> &'static [Property] {
        &[Property::Canonical]
    }

    fn run(&self, graph: &mut Graph, conversion: &mut Conversion<'_>) -> Result<(), PassError> {
        let Conversion { recipe, seed, layers, added, .. } = *conversion;
        let options = Options { recipe, form: self.0.form(recipe), seed, layers, added };
        conversion.report = rewrite(graph, &options)?;
        Ok(())
    }
}
