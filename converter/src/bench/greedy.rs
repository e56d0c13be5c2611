//! The serving graph of a bundle as it is measured: it gives the likeliest next token, and logits of the last token
//! only, as text generation needs them. Every bundle is changed alike.

use super::BenchError;
use crate::bundle::weights::WeightFile;
use crate::checkpoint::Weights;
use crate::onnx::export::{ExportOptions, ExternalWeights, export};
use crate::onnx::import::import;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_format::names::NEXT;
use dijiang_format::target::Target;
use dijiang_passes::attention::lower::grouped::TABLES;
use dijiang_passes::fuse::fuse;
use dijiang_passes::ir::graph::{Graph, Use, ValueId};
use dijiang_passes::ir::op::Op;
use dijiang_passes::ir::patch::Patch;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The graph, in a directory of its own beside the bundle, with a link to the weights.
#[derive(Debug)]
pub(super) struct Greedy {
    directory: TempDir,
    /// Bytes of weights that a step reads.
    pub(super) weight_bytes: u64,
}

impl Greedy {
    pub(super) fn model(&self) -> PathBuf {
        self.directory.path().join(files::MODEL)
    }

    pub(super) fn of(bundle: &Path) -> Result<Self, BenchError> {
        let io = |source| BenchError::Io { path: bundle.to_owned(), source };
        let target = Manifest::own_weights(bundle)?.target;
        let path = bundle.join(files::MODEL);
        let mut graph = import(&path)?;
        let failed = |reason| BenchError::Model { path, reason };
        end_in_a_token(&mut graph)
            .and_then(|()| if target == Target::Ort { fused(&mut graph) } else { Ok(()) })
            .map_err(failed)?;
        let parent = bundle.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = tempfile::Builder::new().prefix(".dijiang-bench-").tempdir_in(parent).map_err(io)?;
        let weights = bundle.join(files::WEIGHTS);
        std::fs::hard_link(&weights, directory.path().join(files::WEIGHTS)).map_err(io)?;
        let stored = Weights::read(&weights)?;
        let file = WeightFile::plan(stored.tensors())?;
        let external = ExternalWeights { location: files::WEIGHTS, file: &file };
        let bytes = export(&graph, &ExportOptions { opset: target.opset(), weights: Some(external) })?;
        std::fs::write(directory.path().join(files::MODEL), bytes).map_err(io)?;
        Ok(Self { directory, weight_bytes: weight_bytes(&graph) })
    }
}

/// Puts [`NEXT`] in the place of the logits.
fn end_in_a_token(graph: &mut Graph) -> Result<(), String> {
    const LOGITS: &str = "logits";
    let logits = graph.output(LOGITS).ok_or("it has no output `logits`")?;
    let head = graph.made_by(logits, "MatMul").and_then(|node| node.input(0).zip(node.input(1)));
    let change = {
        let mut p = Patch::new(graph, "greedy");
        p.set_scope(NEXT);
        let last = match head {
            Some((x, weight)) => {
                let last = p.slice(x, 1, -1, i64::MAX);
                p.matmul(last, weight)
            }
            None => p.slice(logits, 1, -1, i64::MAX),
        };
        // No runtime finds the largest of half-precision numbers on every device.
        let wide = p.cast(last, DType::F32);
        let next = p.node(Op::new("ArgMax").with("axis", -1).with("keepdims", 0), &[wide]);
        p.drop_output(LOGITS);
        p.output(NEXT, next);
        p.finish()
    };
    graph.apply(change).map(|_| ()).map_err(|e| e.to_string())
}

/// As the graphs that are made for serving.
fn fused(graph: &mut Graph) -> Result<(), String> {
    fuse(graph).map(|_| ()).map_err(|e| e.to_string())
}

/// Of a table that tokens are looked up in a step reads a few rows.
fn weight_bytes(graph: &Graph) -> u64 {
    let is_table = |id: ValueId| {
        graph.value(id).uses.iter().all(|user| match user {
            Use::Node { node, slot } => graph.node(*node).op.is("Gather") && *slot == 0,
            Use::GraphOutput(_) => false,
        })
    };
    let is_rotary = |name: &str| name.starts_with(TABLES);
    let weights = graph
        .consts()
        .filter(|(id, name, _)| graph.value(*id).is_weight && !is_table(*id) && !is_rotary(name));
    weights.map(|(_, _, tensor)| tensor.byte_len() as u64).sum()
}
