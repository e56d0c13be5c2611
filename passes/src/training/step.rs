//! The graph that a training step runs: tokens and parameters in, the loss and the gradients out.

use super::TrainingError;
use super::loss::{Loss, cross_entropy};
use super::mixed::mix;
use super::parameters::{Group, Layout, Precision};
use super::specialize::{Size, Specialized, specialize};
use crate::autodiff::gradients_from;
use crate::canon::canonicalize;
use crate::ir::dtype::DType;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::Patch;
use crate::ir::shape::Dim;

/// The labels, i64 `[batch, sequence]`: the tokens themselves, or [`super::loss::IGNORE`].
pub const LABELS: &str = "labels";
/// f32 of rank 0.
pub const LOSS: &str = "loss";
/// f32 of rank 0: the sum of the losses of the tokens that count.
pub const LOSS_SUM: &str = "loss_sum";
/// f32 of rank 0: how many tokens count.
pub const COUNT: &str = "count";
/// What gradients so far are called: the gradients' own name with this in front.
pub const SO_FAR: &str = "so_far.";

/// How a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    pub size: Size,
    pub precision: Precision,
    pub batches: Batches,
}

/// Which of the batches of an update a step works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {
    /// The only one.
    One,
    /// The first of several; gradients are f32 in any precision.
    First,
    /// One after that: gradients so far are inputs that this step's are added to.
    Later,
}

impl StepOptions {
    /// The element type of a group's gradients.
    pub fn gradient_type(&self, group: &Group) -> DType {
        match self.batches {
            Batches::One => self.precision.of_group(group),
            Batches::First | Batches::Later => DType::F32,
        }
    }
}

/// Loss and gradients of a model with the output `logits`.
pub fn training_step(model: &Graph, layout: &Layout, how: &StepOptions) -> Result<Graph, TrainingError> {
    let (special, logits) = forward(model, layout, how)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "training_step");
        let p = &mut patch;
        let loss = write_loss(p, logits, how.size, true);
        let seed = loss.gradient.ok_or(TrainingError::NoLogits)?;
        p.set_scope("backward");
        let found = gradients_from(p, &[(logits, seed)], &special.inputs())?;
        write_gradients(p, layout, found, how)?;
        p.drop_output("logits");
        patch.finish()
    };
    let mut graph = special.graph;
    graph.apply(change)?;
    canonicalize(&mut graph)?;
    Ok(graph)
}

/// The loss alone.
pub fn evaluation(
    model: &Graph,
    layout: &Layout,
    size: Size,
    precision: Precision,
) -> Result<Graph, TrainingError> {
    let how = StepOptions { size, precision, batches: Batches::One };
    let (special, logits) = forward(model, layout, &how)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "evaluation");
        write_loss(&mut patch, logits, size, false);
        patch.drop_output("logits");
        patch.finish()
    };
    let mut graph = special.graph;
    graph.apply(change)?;
    Ok(graph)
}

fn forward(
    model: &Graph,
    layout: &Layout,
    how: &StepOptions,
) -> Result<(Specialized, ValueId), TrainingError> {
    let special = specialize(model, layout, how.size, how.precision, &|name| name == "logits")?;
    let special = in_precision(special, how.precision)?;
    let logits = special.graph.output("logits").ok_or(TrainingError::NoLogits)?;
    Ok((special, logits))
}

pub(super) fn in_precision(model: Specialized, precision: Precision) -> Result<Specialized, TrainingError> {
    match precision {
        Precision::F32 => Ok(model),
        Precision::Bf16 => mix(&model),
    }
}

fn write_loss(p: &mut Patch<'_>, logits: ValueId, size: Size, with_gradient: bool) -> Loss {
    let labels = p.input(LABELS, DType::I64, vec![Dim::Known(size.batch), Dim::Known(size.sequence)]);
    let loss = cross_entropy(p, logits, labels, with_gradient);
    p.output(LOSS, loss.mean);
    p.output(LOSS_SUM, loss.sum);
    p.output(COUNT, loss.count);
    loss
}

/// Each parameter's gradient.
pub(super) fn write_gradients(
    p: &mut Patch<'_>,
    layout: &Layout,
    found: Vec<Option<ValueId>>,
    how: &StepOptions,
) -> Result<(), TrainingError> {
    let groups = layout.groups.iter().flat_map(|g| g.parameters.iter().map(move |q| (g, q)));
    for ((group, parameter), gradient) in groups.zip(found) {
        let gradient = gradient.ok_or_else(|| TrainingError::Unused { name: parameter.name.clone() })?;
        p.set_scope(&format!("gradients/{}", parameter.name));
        let gradient = p.cast(gradient, how.gradient_type(group));
        let total = match how.batches {
            Batches::Later => {
                let dims: Vec<Dim> = parameter.dims.iter().map(|d| Dim::Known(*d)).collect();
                let so_far = p.input(&format!("{SO_FAR}{}", parameter.gradient()), DType::F32, dims);
                p.add(so_far, gradient)
            }
            Batches::One | Batches::First => gradient,
        };
        p.output(&parameter.gradient(), total);
    }
    Ok(())
}
