//! AdamW (Loshchilov and Hutter 2019) on slices of flat vectors, as PyTorch computes it:
//! m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²,
//! p ← p - lr λ p - lr (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε),
//! with g scaled down to a norm of at most `clip_norm` first.
//!
//! Every reader of an old vector comes before the node that writes the new one, so that inputs and outputs
//! may be the same memory.

use super::parameters::{FIRST_MOMENTS, GRADIENTS, Group, PARAMETERS, READ, SECOND_MOMENTS};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;

/// What does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// The learning rate of new parameters, as a multiple of the others'.
    pub new_rate: f64,
}

/// f32 of rank 0: the learning rate of this step.
pub const LEARNING_RATE: &str = "learning_rate";
/// f32 of rank 0: this step's number, from 1.
pub const STEP: &str = "step";
/// f32 of rank 0: what the gradients are multiplied by, for clipping and for the mean over micro-batches.
pub const GRADIENT_SCALE: &str = "gradient_scale";

/// What an updated vector is called; it is the input's own name with this in front.
pub const UPDATED: &str = "updated.";

/// f32 of rank 0: the sum of the squares of a slice of gradients.
pub const SQUARES: &str = "squares";

/// Writes the graph that measures a slice of a group: `gradients.G` in, [`SQUARES`] out.
pub fn squares(group: &Group, types: Types) -> Result<Graph, PatchError> {
    let mut graph = Graph::new("squares");
    let change = {
        let mut patch = Patch::new(&graph, "squares");
        let gradient = slice(&mut patch, group, GRADIENTS, types.gradients);
        let gradient = patch.cast(gradient, DType::F32);
        let sum = patch.reduce("ReduceSumSquare", gradient, &[0], false);
        patch.output(SQUARES, sum);
        patch.finish()
    };
    graph.apply(change)?;
    Ok(graph)
}

fn slice(p: &mut Patch<'_>, group: &Group, part: &str, dtype: DType) -> ValueId {
    p.input(&group.vector(part), dtype, vec![Dim::Known(group.slice_len() as u64)])
}

/// The element types of a group's vectors.
#[derive(Debug, Clone, Copy)]
pub struct Types {
    /// In which the training graph reads the parameters.
    pub read: DType,
    pub gradients: DType,
}

/// Writes the graph that updates a slice of a group: `parameters.G`, `gradients.G`, `first_moments.G` and
/// `second_moments.G` in, all but the gradients out, and `read.G` where the parameters are read in another
/// type than f32.
pub fn adamw(group: &Group, how: &AdamW, types: Types) -> Result<Graph, PatchError> {
    let mut graph = Graph::new("adamw");
    let change = {
        let mut patch = Patch::new(&graph, "adamw");
        update(&mut patch, group, how, types);
        patch.finish()
    };
    graph.apply(change)?;
    Ok(graph)
}

/// 1 - βᵗ
fn correction(p: &mut Patch<'_>, step: ValueId, beta: f64) -> ValueId {
    let power = p.mul_scalar(step, beta.ln());
    let power = p.exp(power);
    let one = p.scalar_like(power, 1.0);
    p.sub(one, power)
}

fn update(p: &mut Patch<'_>, group: &Group, how: &AdamW, types: Types) {
    let [rate, step, scale] =
        [LEARNING_RATE, STEP, GRADIENT_SCALE].map(|name| p.input(name, DType::F32, vec![]));
    let [first, second] = [how.beta1, how.beta2].map(|beta| correction(p, step, beta));
    let mut slice =
        |part: &str, dtype| p.input(&group.vector(part), dtype, vec![Dim::Known(group.slice_len() as u64)]);
    let [old, m, v] = [PARAMETERS, FIRST_MOMENTS, SECOND_MOMENTS].map(|part| slice(part, DType::F32));
    let gradient = slice(GRADIENTS, types.gradients);
    let gradient = p.cast(gradient, DType::F32);
    let rate = if group.is_new { p.mul_scalar(rate, how.new_rate) } else { rate };

    let g = p.mul(gradient, scale);
    let m = average(p, m, g, how.beta1);
    let square = p.mul(g, g);
    let v = average(p, v, square, how.beta2);
    let root = p.div(v, second);
    let root = p.sqrt(root);
    let root = p.add_scalar(root, how.epsilon);
    let size = p.div(rate, first);
    let direction = p.div(m, root);
    let step = p.mul(direction, size);
    let kept = match group.decays {
        true => {
            let shrink = p.mul_scalar(rate, -how.weight_decay);
            let shrink = p.add_scalar(shrink, 1.0);
            p.mul(old, shrink)
        }
        false => old,
    };
    let new = p.sub(kept, step);
    for (part, value) in [(PARAMETERS, new), (FIRST_MOMENTS, m), (SECOND_MOMENTS, v)] {
        p.output(&format!("{UPDATED}{}", group.vector(part)), value);
    }
    if types.read != DType::F32 {
        let read = p.cast(new, types.read);
        p.output(&group.vector(READ), read);
    }
}

/// β old + (1 - β) new
fn average(p: &mut Patch<'_>, old: ValueId, new: ValueId, beta: f64) -> ValueId {
    let kept = p.mul_scalar(old, beta);
    let added = p.mul_scalar(new, 1.0 - beta);
    p.add(kept, added)
}
