//! Queries and keys of a softmax model over one text, to fit feature weights on.

use super::TrainingError;
use super::parameters::{ParameterLayout, Precision};
use super::specialize::{Size, specialize};
use crate::attention::sampling_graph::SAMPLES;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::Patch;
use crate::ir::rebuild::{Rebuild, copy_constant, rebuild};
use crate::ir::tensor::Tensor;
use std::collections::BTreeMap;

/// The graph of a model with samples as outputs (`attention::sampling_graph::write_samples`), for one row of so many
/// tokens, with `current` in the place of the weights of these names.
pub fn sample_graph(
    model: &Graph,
    sequence: u64,
    current: BTreeMap<String, Tensor>,
) -> Result<Graph, TrainingError> {
    let model = rebuild(model, "current_weights", &mut Current(current))?;
    let nothing = ParameterLayout::default();
    let size = Size { batch: 1, sequence };
    let keeps = |name: &str| SAMPLES.iter().any(|sample| name.starts_with(sample));
    Ok(specialize(&model, &nothing, size, Precision::F32, &keeps)?.graph)
}

struct Current(BTreeMap<String, Tensor>);

impl Rebuild for Current {
    fn constant(&mut self, p: &mut Patch<'_>, graph: &Graph, id: ValueId) -> ValueId {
        match self.0.remove(&graph.value(id).name) {
            Some(tensor) => p.weight(&graph.value(id).name, tensor),
            None => copy_constant(p, graph, id),
        }
    }
}
