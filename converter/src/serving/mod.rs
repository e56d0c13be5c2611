//! Opens bundles for decoding: the one way of `generate`, `verify`, `eval` and `bench`.
//!
//! A bundle of target `ort` is decoded by a graph that is made of its served one when it is opened: it gives the likeliest
//! next token and the last token's logits, so that prompts cost no logits of their other tokens, and its states stay
//! where they are computed. Other bundles and engines run the bundle's own graphs.

use crate::bundle::weights::{LayoutError, WeightFile};
use crate::checkpoint::{CheckpointError, Weights};
use crate::onnx::export::{ExportError, ExportOptions, ExternalWeights, export};
use crate::onnx::import::{ImportError, import};
use crate::provenance::opened::{self, NotAsWritten};
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError};
use dijiang_format::names::PAST;
use dijiang_format::serving::{Device, Engine};
use dijiang_format::target::Target;
use dijiang_passes::attention::lower::grouped::{DOMAIN, OPERATOR as GROUPED};
use dijiang_passes::attention::rewrite::Report;
use dijiang_passes::ir::graph::{Graph, Use, ValueId};
use dijiang_passes::pipeline::table::{DECODED, DECODED_ON_GPU};
use dijiang_passes::pipeline::{Conversion, PipelineError, run};
use dijiang_runtime::{RuntimeError, Serving, ServingOptions};
use std::path::Path;

/// A bundle could not be opened for decoding.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    NotAsWritten(#[from] NotAsWritten),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Loads a bundle whose files are as they were written, with an empty state for one sequence.
pub fn open(bundle: &Path, options: &ServingOptions) -> Result<Serving, OpenError> {
    let manifest = Manifest::read(bundle)?;
    opened::check(bundle, &manifest)?;
    // All bytes of the weights are read for it, while the runtime loads them.
    std::thread::scope(|scope| {
        let weights = scope.spawn(|| opened::check_weights(bundle, &manifest));
        let serving = open_any(bundle, options);
        weights.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        serving
    })
}

/// Loads a bundle as it is: for verification, which tells what is not as it was written.
pub(crate) fn open_any(bundle: &Path, options: &ServingOptions) -> Result<Serving, OpenError> {
    let manifest = Manifest::read(bundle)?;
    match decoded(bundle, &manifest, options)? {
        Some(graph) => Ok(Serving::open_made(bundle, &graph, options)?),
        None => Ok(Serving::open(bundle, options)?),
    }
}

/// The graph that is made for decoding, as an ONNX file; `None` where the bundle's own graphs decode.
fn decoded(
    bundle: &Path,
    manifest: &Manifest,
    options: &ServingOptions,
) -> Result<Option<Vec<u8>>, OpenError> {
    let is_served = manifest.serving_graph(options.engine, options.device) == files::MODEL;
    let is_ort = options.engine == Engine::Ort && manifest.target == Target::Ort;
    // The weights of a linked bundle lie in several files.
    let is_alone = manifest.linked.is_empty();
    // Without a state each text is one call of the bundle's own graph.
    let is_other = manifest.state.is_empty() || options.all_logits || options.uses_bound_graphs(bundle);
    if !is_served || !is_ort || !is_alone || is_other {
        return Ok(None);
    }
    let mut graph = import(&bundle.join(files::MODEL))?;
    if !caches_are_shared(&graph) {
        return Ok(None);
    }
    let recipe = &manifest.recipe;
    let mut conversion = Conversion { recipe, seed: 0, layers: None, added: None, report: Report::default() };
    let passes = if options.device == Device::Cpu { DECODED } else { DECODED_ON_GPU };
    run(&mut graph, passes, &mut conversion)?;
    let stored = Weights::read(&bundle.join(files::WEIGHTS))?;
    let file = WeightFile::plan(stored.tensors())?;
    let weights = ExternalWeights { location: files::WEIGHTS, file: &file };
    let options = ExportOptions { opset: manifest.target.opset(), weights: Some(weights) };
    Ok(Some(export(&graph, &options)?))
}

/// Whether every cache that grows is that of an operator which writes into its past.
fn caches_are_shared(graph: &Graph) -> bool {
    let is_shared = |id: ValueId| {
        let grouped = |user: &Use| match user {
            Use::Node { node, .. } => {
                let op = &graph.node(*node).op;
                (op.domain(), op.name()) == (DOMAIN, GROUPED)
            }
            Use::GraphOutput(_) => false,
        };
        graph.value(id).uses.iter().all(grouped)
    };
    let grows = |id: &&ValueId| {
        let dims = graph.value(**id).ty.shape.as_deref().unwrap_or_default();
        dims.iter().skip(1).any(|dim| dim.known().is_none())
    };
    let pasts = graph.inputs().iter().filter(|id| graph.value(**id).name.starts_with(PAST));
    pasts.filter(grows).all(|id| is_shared(*id))
}
