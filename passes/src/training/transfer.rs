//! Attention transfer: the linear attention of each layer is trained to give what the softmax attention of
//! the same layer gives, while the softmax attention drives the model. The loss of a layer is the squared
//! error relative to the squared size of what is to be given; the loss is the mean over layers.

use super::TrainingError;
use super::finish::complete;
use super::parameters::ParameterLayout;
use super::specialize::specialize;
use super::step::{LOSS, StepOptions, in_precision, write_gradients};
use crate::attention::calibration_graph::{LINEAR_OUTPUT, SOFTMAX_OUTPUT};
use crate::autodiff::gradients;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::Patch;
use dijiang_format::dtype::DType;

/// Loss and gradients of a model with both attentions as outputs (`attention::calibration_graph::write_beside`).
pub fn transfer_step(
    model: &Graph,
    layers: &[usize],
    layout: &ParameterLayout,
    how: &StepOptions,
) -> Result<Graph, TrainingError> {
    let keeps = |name: &str| name.starts_with(SOFTMAX_OUTPUT) || name.starts_with(LINEAR_OUTPUT);
    let special = specialize(model, layout, how.size, how.precision, &keeps)?;
    let mut special = in_precision(special, how.precision)?;
    let (change, loss) = {
        let mut patch = Patch::new(&special.graph, "attention_transfer");
        let losses = layers.iter().map(|layer| layer_loss(&mut patch, &special.graph, *layer));
        let losses = losses.collect::<Result<Vec<_>, _>>()?;
        let sum = losses.into_iter().reduce(|a, b| patch.add(a, b)).ok_or(TrainingError::NoLinear)?;
        let mean = patch.mul_scalar(sum, (layers.len() as f64).recip());
        patch.output(LOSS, mean);
        for layer in layers {
            patch.drop_output(&format!("{SOFTMAX_OUTPUT}{layer}"));
            patch.drop_output(&format!("{LINEAR_OUTPUT}{layer}"));
        }
        (patch.finish(), mean)
    };
    special.graph.apply(change)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "training_step");
        patch.set_scope("backward");
        let found = gradients(&mut patch, loss, &special.inputs())?;
        write_gradients(&mut patch, layout, found, how)?;
        patch.finish()
    };
    complete(special.graph, change)
}

fn layer_loss(p: &mut Patch<'_>, graph: &Graph, layer: usize) -> Result<ValueId, TrainingError> {
    p.set_scope(&format!("transfer.{layer}"));
    let mut output = |prefix: &str| {
        let found = graph.output(&format!("{prefix}{layer}")).ok_or(TrainingError::NoLinear)?;
        Ok::<_, TrainingError>(p.cast(found, DType::F32))
    };
    let (soft, linear) = (output(SOFTMAX_OUTPUT)?, output(LINEAR_OUTPUT)?);
    let error = p.sub(linear, soft);
    let axes = [0, 1, 2, 3];
    let [error, size] = [error, soft].map(|x| p.reduce("ReduceSumSquare", x, &axes, false));
    Ok(p.div(error, size))
}
