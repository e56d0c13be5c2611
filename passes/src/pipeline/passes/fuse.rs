//! *Matches:* plain operators that ONNX Runtime computes in one kernel, see the rules of [`crate::fuse`]
//! *Becomes:* that kernel's operator
//! *Exact:* up to rounding
//! *Declines:* served graphs without an attention that only ONNX Runtime has, which keep to standard operators, and served
//! graphs in half precision: between plain operators the CPU keeps f32, and fused ones round the residuals

use crate::canon::GraphRule as _;
use crate::fuse::constant_factor::ConstantFactor;
use crate::fuse::{fuse, fuse_for_many};
use crate::ir::graph::Graph;
use crate::ir::op::Op;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use dijiang_format::dtype::DType;

/// The attentions that only ONNX Runtime has.
const ONLY_THERE: [&str; 2] = ["LinearAttention", "GroupQueryAttention"];

/// What the graph is for.
#[derive(Debug)]
pub enum Fuse {
    /// Serving with its own weights.
    Served,
    /// Bound memory, many tokens at a time.
    ManyTokens,
    /// Bound memory, one token at a time.
    OneToken,
    /// Decoding by a served graph that was read again.
    Decoded,
}

impl Pass for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn needs(&self) -> &'static [Property] {
        match self {
            Self::Served | Self::ManyTokens => &[Property::Canonical, Property::Lowered],
            Self::OneToken => &[Property::Canonical, Property::Lowered, Property::OneToken],
            Self::Decoded => &[Property::Lowered],
        }
    }

    fn ensures(&self) -> &'static [Property] {
        &[Property::Fused]
    }

    fn ends(&self) -> &'static [Property] {
        &[Property::Canonical]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        match self {
            Self::Served => fuse_served(graph)?,
            Self::ManyTokens => {
                fuse_for_many(graph)?;
            }
            Self::OneToken | Self::Decoded => {
                fuse(graph)?;
            }
        }
        Ok(())
    }
}

fn fuse_served(graph: &mut Graph) -> Result<(), PassError> {
    let only_there =
        |op: &Op| ONLY_THERE.iter().any(|name| (op.domain(), op.name()) == ("com.microsoft", *name));
    let half = |dtype: Option<DType>| matches!(dtype, Some(DType::F16 | DType::BF16));
    if graph.nodes().any(|(_, node)| only_there(&node.op)) && !graph.values().any(|(_, v)| half(v.ty.dtype)) {
        fuse(graph)?;
        ConstantFactor.sweep(graph)?;
        graph.refresh_types()?;
    }
    Ok(())
}
