//! *Matches:* plain operators that ONNX Runtime computes in one kernel, see the rules of [`crate::fuse`]
//! *Becomes:* that kernel's operator
//! *Exact:* up to rounding
//! *Declines:* served graphs without an attention that only ONNX Runtime has, which keep to standard operators, and served
//! graphs in half precision: between plain operators the CPU keeps f32, and fused ones round the residuals

use crate::canon::GraphRule as _;
use crate::fuse::constant_factor::ConstantFactor;
use crate::fuse::{Purpose, fuse};
use crate::ir::graph::Graph;
use crate::ir::op::Op;
use crate::pipeline::{Conversion, Pass, PassError, Property};
use dijiang_format::dtype::DType;

/// The attentions that only ONNX Runtime has.
const ONLY_THERE: [&str; 2] = ["LinearAttention", "GroupQueryAttention"];

/// By what the graph is for.
#[derive(Debug)]
pub struct Fuse(pub Purpose);

impl Pass for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn needs(&self) -> &'static [Property] {
        match self.0 {
            Purpose::Served | Purpose::ManyTokens => &[Property::Canonical, Property::Lowered],
            Purpose::OneToken => &[Property::Canonical, Property::Lowered, Property::OneToken],
            Purpose::Decoded => &[Property::Lowered],
        }
    }

    fn ensures(&self) -> &'static [Property] {
        &[Property::Fused]
    }

    fn ends(&self) -> &'static [Property] {
        &[Property::Canonical]
    }

    fn run(&self, graph: &mut Graph, _: &mut Conversion<'_>) -> Result<(), PassError> {
        match self.0 {
            Purpose::Served => fuse_served(graph)?,
            other => {
                fuse(graph, other)?;
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
        fuse(graph, Purpose::Served)?;
        ConstantFactor.sweep(graph)?;
        graph.refresh_types()?;
    }
    Ok(())
}
