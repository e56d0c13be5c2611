//! The bytes of weights that a step of a bundle reads, which is as it was written.

use crate::onnx::import::import;
use crate::provenance::opened;
use dijiang_format::manifest::Manifest;
use dijiang_format::names::TABLES;
use dijiang_format::serving::{Device, Engine};
use dijiang_passes::ir::graph::{Graph, Use, ValueId};
use std::path::Path;

/// Of the graph that ONNX Runtime serves a bundle with on a device, if it is what was written.
pub(super) fn read_bytes(bundle: &Path, device: Device) -> Result<u64, super::BenchError> {
    let manifest = Manifest::read(bundle)?;
    opened::check(bundle, &manifest)?;
    opened::check_weights(bundle, &manifest)?;
    Ok(weight_bytes(&import(&bundle.join(manifest.serving_graph(Engine::Ort, device)))?))
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
