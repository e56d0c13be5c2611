//! The graph that a training step runs: tokens and parameters in, the loss and the gradients out.

use super::TrainingError;
use super::finish::finish;
use super::loss::{Loss, cross_entropy, split_rows};
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
    let (special, logits) = forward(model, layout, how.size, how.precision)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "training_step");
        let p = &mut patch;
        let loss = write_loss(p, &logits, how.size, true);
        let seeds: Vec<(ValueId, ValueId)> = logits.into_iter().zip(loss.gradients).collect();
        p.set_scope("backward");
        let found = gradients_from(p, &seeds, &special.inputs())?;
        write_gradients(p, layout, found, how)?;
        drop_chunks(p, &special.graph);
        patch.finish()
    };
    let mut graph = special.graph;
    graph.apply(change)?;
    canonicalize(&mut graph)?;
    Ok(finish(&graph)?)
}

/// The loss alone.
pub fn evaluation(
    model: &Graph,
    layout: &Layout,
    size: Size,
    precision: Precision,
) -> Result<Graph, TrainingError> {
    let (special, logits) = forward(model, layout, size, precision)?;
    let change = {
        let mut patch = Patch::new(&special.graph, "evaluation");
        write_loss(&mut patch, &logits, size, false);
        drop_chunks(&mut patch, &special.graph);
        patch.finish()
    };
    let mut graph = special.graph;
    graph.apply(change)?;
    canonicalize(&mut graph)?;
    Ok(finish(&graph)?)
}

/// The model with its logits in chunks of rows.
fn forward(
    model: &Graph,
    layout: &Layout,
    size: Size,
    precision: Precision,
) -> Result<(Specialized, Vec<ValueId>), TrainingError> {
    let mut special = specialize(model, layout, size, precision, &|name| name == "logits")?;
    cut_logits(&mut special.graph, size)?;
    let special = in_precision(special, precision)?;
    let names = special.graph.outputs().iter().filter(|(name, _)| name.starts_with(CHUNK));
    let logits: Vec<ValueId> = names.map(|(_, value)| *value).collect();
    match logits.is_empty() {
        true => Err(TrainingError::NoLogits),
        false => Ok((special, logits)),
    }
}

/// Outputs that hold chunks of the logits, `[rows, vocab]`, while the graph is made.
const CHUNK: &str = "logits.";

/// Elements of a chunk, at most. The loss passes over several f32 tensors of this size.
const CHUNK_LEN: u64 = 1 << 26;

/// Cuts the product that makes the logits into chunks of rows, so that they never exist as a whole.
fn cut_logits(graph: &mut Graph, size: Size) -> Result<(), TrainingError> {
    let logits = graph.output("logits").ok_or(TrainingError::NoLogits)?;
    let mut patch = Patch::new(graph, "cut_logits");
    let p = &mut patch;
    p.set_scope("logits");
    let vocab = p.known_dim(logits, 2);
    let product = p.graph().made_by(logits, "MatMul").and_then(|n| Some((n.input(0)?, n.input(1)?)));
    let product = product.filter(|(_, weight)| p.graph().value(*weight).ty.rank() == Some(2));
    let tokens = size.batch * size.sequence;
    let rows = chunk_rows(tokens, vocab);
    let chunks = match product {
        Some((hidden, weight)) if rows.len() > 1 => {
            let width = p.known_dim(hidden, 2) as i64;
            let flat = p.reshape(hidden, &[-1, width]);
            let parts = split_rows(p, flat, &rows);
            parts.into_iter().map(|part| p.matmul(part, weight)).collect()
        }
        _ => vec![p.reshape(logits, &[-1, vocab as i64])],
    };
    for (i, chunk) in chunks.into_iter().enumerate() {
        p.output(&format!("{CHUNK}{i:04}"), chunk);
    }
    p.drop_output("logits");
    let change = patch.finish();
    graph.apply(change)?;
    Ok(())
}

/// Chunks alike but for the last, of a multiple of 64 rows, which is what matrix products do best.
fn chunk_rows(tokens: u64, vocab: u64) -> Vec<i64> {
    let count = (tokens * vocab).div_ceil(CHUNK_LEN);
    let rows = tokens.div_ceil(count).next_multiple_of(64).min(tokens);
    let mut sizes = vec![rows as i64; (tokens / rows) as usize];
    sizes.extend(Some((tokens % rows) as i64).filter(|rest| *rest > 0));
    sizes
}

fn drop_chunks(p: &mut Patch<'_>, graph: &Graph) {
    let names = graph.outputs().iter().map(|(name, _)| name).filter(|name| name.starts_with(CHUNK));
    names.for_each(|name| p.drop_output(name));
}

pub(super) fn in_precision(model: Specialized, precision: Precision) -> Result<Specialized, TrainingError> {
    match precision {
        Precision::F32 => Ok(model),
        Precision::Bf16 => mix(&model),
    }
}

fn write_loss(p: &mut Patch<'_>, logits: &[ValueId], size: Size, with_gradient: bool) -> Loss {
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
