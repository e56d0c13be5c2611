//! Next-token cross-entropy, with its gradient written out: p - onehot, so that the logits are passed over
//! as few times as there is need to. A teacher's logits add weight · KL(teacher ‖ model), whose gradient is
//! weight · (p - softmax(teacher)).

use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

/// The label of a token that does not count, as in PyTorch.
pub const IGNORE: i64 = -100;

/// A label is at least this likely, about e⁻⁸⁷, or its loss would be infinite. Only the loss as a number knows
/// of it, not the gradient.
const LEAST: f64 = 1.2e-38;

/// A loss in a graph.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The mean over the tokens that count, f32 of rank 0; zero where none does. With the divergence from a
    /// teacher.
    pub mean: ValueId,
    /// The sum of the cross-entropies over them, f32 of rank 0.
    pub sum: ValueId,
    /// How many count, f32 of rank 0.
    pub count: ValueId,
    /// The mean of KL(teacher ‖ model), f32 of rank 0; where there is a teacher.
    pub divergence: Option<ValueId>,
    /// d mean / d logits of each chunk, in the element type of the logits; where it was asked for.
    pub gradients: Vec<ValueId>,
}

/// A model whose tokens' distributions are to be met.
#[derive(Debug, Clone)]
pub struct Teacher {
    /// Chunks of logits like the model's own.
    pub logits: Vec<ValueId>,
    /// What the divergence is multiplied by.
    pub weight: f64,
}

/// Writes the loss of logits against `labels` `[batch, sequence]`, i64: the logits of token t predict label
/// t + 1, as in Hugging Face models. `logits` are chunks of `[rows, vocab]`, all tokens of all rows of the
/// batch in order: what is computed in f32 is as large as one chunk.
pub fn cross_entropy(
    p: &mut Patch<'_>,
    logits: &[ValueId],
    labels: ValueId,
    teacher: Option<&Teacher>,
    with_gradient: bool,
) -> Loss {
    p.set_scope("loss");
    let next = next_labels(p, labels);
    let next = p.reshape(next, &[-1]);
    let ignore = p.constant("ignore", Tensor::scalar(DType::I64, IGNORE as f64));
    let ignored = p.equal(next, ignore);
    let (zero, one) = (
        p.constant("zero", Tensor::scalar(DType::F32, 0.0)),
        p.constant("one", Tensor::scalar(DType::F32, 1.0)),
    );
    let counts = p.select(ignored, zero, one);
    let first = p.constant("first", Tensor::scalar(DType::I64, 0.0));
    let targets = p.select(ignored, first, next);
    let count = p.reduce("ReduceSum", counts, &[0], false);
    let at_least_one = p.max(count, one);
    let weights = p.div(counts, at_least_one);

    let least = p.constant("least", Tensor::scalar(DType::F32, LEAST));

    let rows: Vec<i64> = logits.iter().map(|chunk| p.known_dim(*chunk, 0) as i64).collect();
    let [targets, counts, weights] = [targets, counts, weights].map(|x| split_rows(p, x, &rows));
    let mut sums = Vec::new();
    let mut divergences = Vec::new();
    let mut gradients = Vec::new();
    for (i, chunk) in logits.iter().enumerate() {
        p.set_scope(&format!("loss.{i}"));
        let target = p.unsqueeze(targets[i], &[1]);
        let wide = p.cast(*chunk, DType::F32);
        let probabilities = p.softmax(wide, -1);
        let chosen = p.node(Op::new("GatherElements").with("axis", 1), &[probabilities, target]);
        let chosen = p.max(chosen, least);
        let log = p.log(chosen);
        let nll = p.neg(log);
        let nll = p.squeeze(nll, &[1]);
        let counted = p.mul(nll, counts[i]);
        sums.push(p.reduce("ReduceSum", counted, &[0], false));
        let taught = teacher.map(|t| divergence(p, wide, t.logits[i]));
        if let Some((divergence, _)) = taught {
            let counted = p.mul(divergence, counts[i]);
            divergences.push(p.reduce("ReduceSum", counted, &[0], false));
        }
        if with_gradient {
            // The weight as it is, once the loss is there: a runtime that works back from the gradients is then
            // done with a chunk before it goes on to the next.
            let is_done = p.equal(nll, nll);
            let weight = p.select(is_done, weights[i], weights[i]);
            let off = off_target(p, probabilities, target);
            let off = match teacher.zip(taught) {
                Some((teacher, (_, aims))) => {
                    let apart = p.sub(probabilities, aims);
                    let apart = p.mul_scalar(apart, teacher.weight);
                    p.add(off, apart)
                }
                None => off,
            };
            let weight = p.unsqueeze(weight, &[1]);
            let gradient = p.mul(off, weight);
            let dtype = p.dtype(*chunk);
            gradients.push(p.cast(gradient, dtype));
        }
    }
    p.set_scope("loss");
    let sum = sums.into_iter().reduce(|a, b| p.add(a, b)).unwrap_or(zero);
    let mean = p.div(sum, at_least_one);
    let divergence = divergences.into_iter().reduce(|a, b| p.add(a, b)).map(|sum| p.div(sum, at_least_one));
    let mean = match teacher.zip(divergence) {
        Some((teacher, divergence)) => {
            let weighted = p.mul_scalar(divergence, teacher.weight);
            p.add(mean, weighted)
        }
        None => mean,
    };
    Loss { mean, sum, count, divergence, gradients }
}

/// KL(teacher ‖ model) of each row of f32 logits, and the teacher's probabilities.
fn divergence(p: &mut Patch<'_>, logits: ValueId, teacher: ValueId) -> (ValueId, ValueId) {
    let teacher = p.cast(teacher, DType::F32);
    let [own, aim] = [logits, teacher].map(|x| p.node(Op::new("LogSoftmax").with("axis", -1), &[x]));
    let aims = p.exp(aim);
    let apart = p.sub(aim, own);
    let terms = p.mul(aims, apart);
    (p.reduce("ReduceSum", terms, &[1], false), aims)
}

/// Pieces of so many rows each.
pub(super) fn split_rows(p: &mut Patch<'_>, x: ValueId, rows: &[i64]) -> Vec<ValueId> {
    match rows {
        [_] => vec![x],
        several => p.split(x, 0, several),
    }
}

/// Row by row one to the left, with nothing to predict after the last token.
fn next_labels(p: &mut Patch<'_>, labels: ValueId) -> ValueId {
    let rest = p.slice(labels, 1, 1, i64::MAX);
    let rows = p.known_dim(labels, 0);
    let last = p.constant("last", Tensor::from_i64(&[rows, 1], &vec![IGNORE; rows as usize]));
    p.concat(&[rest, last], 1)
}

/// p - onehot(target)
fn off_target(p: &mut Patch<'_>, probabilities: ValueId, target: ValueId) -> ValueId {
    let rows = p.known_dim(target, 0);
    // Where in [rows, vocab] each target lies.
    let place: Vec<i64> = (0..rows as i64).collect();
    let place = p.constant("place", Tensor::from_i64(&[rows, 1], &place));
    let index = p.concat(&[place, target], 1);
    let minus = p.constant("minus_one", Tensor::from_f32(&[rows], &vec![-1.0; rows as usize]));
    p.node(Op::new("ScatterND").with("reduction", "add"), &[probabilities, index, minus])
}
