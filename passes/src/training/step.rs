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
/// f32 of rank 0: the 2-norm of all gradients, of those that were added up where they are.
pub const NORM: &str = "gradient_norm";
/// What gradients so far are called: the gradients' own name with this in front.
pub const SO_FAR: &str = "so_far.";

/// How a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    pub size: Size,
    pub precision: Precision,
    /// Whether gradients so far are inputs that this step's are added to.
    pub accumulate: bool,
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
        let found = gradients_from(p, &[(logits, seed)], &special.pieces())?;
        write_gradients(p, layout, found, how.accumulate)?;
        p.drop_output("logits");
        special.drop_pieces(p);
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
    let how = StepOptions { size, precision, accumulate: false };
    let (special, logits) = forward(model, layout, &how)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "evaluation");
        write_loss(&mut patch, logits, size, false);
        patch.drop_output("logits");
        special.drop_pieces(&mut patch);
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

/// One flat vector of gradients for each group, and their norm.
pub(super) fn write_gradients(
    p: &mut Patch<'_>,
    layout: &Layout,
    found: Vec<Option<ValueId>>,
    accumulate: bool,
) -> Result<(), TrainingError> {
    let named = layout.parameters().zip(found).map(|(parameter, gradient)| {
        gradient.ok_or_else(|| TrainingError::Unused { name: parameter.name.clone() })
    });
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let mut rest = named.as_slice();
    let mut squares = Vec::new();
    for group in &layout.groups {
        p.set_scope(&format!("gradients/{}", group.name));
        let (own, others) = rest.split_at(group.parameters.len());
        rest = others;
        let flat = flat(p, group, own);
        let total = match accumulate {
            true => {
                let name = format!("{SO_FAR}{}", group.vector("gradients"));
                let so_far = p.input(&name, DType::F32, vec![Dim::Known(group.len() as u64)]);
                p.add(so_far, flat)
            }
            false => flat,
        };
        p.output(&group.vector("gradients"), total);
        squares.push(p.reduce("ReduceSumSquare", total, &[0], false));
    }
    let sum = squares.into_iter().reduce(|a, b| p.add(a, b));
    if let Some(sum) = sum {
        let norm = p.sqrt(sum);
        p.output(NORM, norm);
    }
    Ok(())
}

fn flat(p: &mut Patch<'_>, group: &Group, gradients: &[ValueId]) -> ValueId {
    let joined = match gradients {
        [only] => *only,
        several => p.concat(several, 0),
    };
    debug_assert_eq!(p.dim(joined, 0), Dim::Known(group.len() as u64));
    p.cast(joined, DType::F32)
}
