//! Next-token cross-entropy, with its gradient written out: p - onehot, so that the logits are passed over
//! as few times as there is need to.

use crate::ir::dtype::DType;
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;

/// The label of a token that does not count, as in PyTorch.
pub const IGNORE: i64 = -100;

/// A loss in a graph.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// The mean over the tokens that count, f32 of rank 0; zero where none does.
    pub mean: ValueId,
    /// The sum over them, f32 of rank 0.
    pub sum: ValueId,
    /// How many count, f32 of rank 0.
    pub count: ValueId,
    /// d mean / d logits, in the element type of the logits; where it was asked for.
    pub gradient: Option<ValueId>,
}

/// Writes the loss of `logits` `[batch, sequence, vocab]` against `labels` `[batch, sequence]`, i64: the logits
/// of token t predict label t + 1, as in Hugging Face models.
pub fn cross_entropy(p: &mut Patch<'_>, logits: ValueId, labels: ValueId, with_gradient: bool) -> Loss {
    p.set_scope("loss");
    let next = next_labels(p, labels);
    let ignore = p.constant("ignore", Tensor::scalar(DType::I64, IGNORE as f64));
    let ignored = p.equal(next, ignore);
    let (zero, one) = (
        p.constant("zero", Tensor::scalar(DType::F32, 0.0)),
        p.constant("one", Tensor::scalar(DType::F32, 1.0)),
    );
    let counts = p.select(ignored, zero, one);
    let first = p.constant("first", Tensor::scalar(DType::I64, 0.0));
    let target = p.select(ignored, first, next);
    let target = p.unsqueeze(target, &[2]);

    let wide = p.cast(logits, DType::F32);
    let probabilities = p.softmax(wide, -1);
    // log Σ exp x = max x - log max p, without another tensor as large as the logits.
    let (most, likeliest) =
        (p.reduce("ReduceMax", wide, &[-1], true), p.reduce("ReduceMax", probabilities, &[-1], true));
    let log = p.log(likeliest);
    let log_sum = p.sub(most, log);
    let chosen = p.node(Op::new("GatherElements").with("axis", 2), &[wide, target]);
    let nll = p.sub(log_sum, chosen);
    let nll = p.squeeze(nll, &[2]);
    let counted = p.mul(nll, counts);
    let sum = p.reduce("ReduceSum", counted, &[0, 1], false);
    let count = p.reduce("ReduceSum", counts, &[0, 1], false);
    let at_least_one = p.max(count, one);
    let mean = p.div(sum, at_least_one);
    let gradient = with_gradient.then(|| {
        let weight = p.div(counts, at_least_one);
        let gradient = gradient(p, probabilities, target, weight);
        let dtype = p.dtype(logits);
        p.cast(gradient, dtype)
    });
    Loss { mean, sum, count, gradient }
}

/// Row by row one to the left, with nothing to predict after the last token.
fn next_labels(p: &mut Patch<'_>, labels: ValueId) -> ValueId {
    let rest = p.slice(labels, 1, 1, i64::MAX);
    let rows = p.known_dim(labels, 0);
    let last = p.constant("last", Tensor::from_i64(&[rows, 1], &vec![IGNORE; rows as usize]));
    p.concat(&[rest, last], 1)
}

/// (p - onehot(target)) · weight
fn gradient(p: &mut Patch<'_>, probabilities: ValueId, target: ValueId, weight: ValueId) -> ValueId {
    let (rows, tokens) = (p.known_dim(target, 0), p.known_dim(target, 1));
    // Where in [batch, sequence, vocab] each target lies.
    let place: Vec<i64> =
        (0..rows as i64).flat_map(|r| (0..tokens as i64).flat_map(move |t| [r, t])).collect();
    let place = p.constant("place", Tensor::from_i64(&[rows, tokens, 2], &place));
    let index = p.concat(&[place, target], 2);
    let minus = vec![-1.0; (rows * tokens) as usize];
    let minus = p.constant("minus_one", Tensor::from_f32(&[rows, tokens], &minus));
    let off = p.node(Op::new("ScatterND").with("reduction", "add"), &[probabilities, index, minus]);
    let weight = p.unsqueeze(weight, &[2]);
    p.mul(off, weight)
}
