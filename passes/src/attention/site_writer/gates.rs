//! Decays and rates of writing: what the hidden state says of the state.

use super::SiteWriter;
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::{Decay, Rule};

/// The logit of β at first: most of what a key holds is replaced.
const BETA: f32 = 2.0;

impl SiteWriter<'_, '_, '_> {
    /// log a_t, `[batch, kv_heads, sequence]`.
    pub(in crate::attention) fn log_decay(&mut self) -> Option<ValueId> {
        match self.options.recipe.decay {
            Decay::None => None,
            Decay::Fixed => Some(self.fixed_decay()),
            Decay::Learned => self.site.hidden.map(|hidden| self.learned_decay(hidden)),
        }
    }

    pub(super) fn fixed_decay(&mut self) -> ValueId {
        let heads = self.site.kv_heads;
        let logs: Vec<f32> = (0..heads).map(|h| (-(-5.0 - h as f64).exp2()).ln_1p() as f32).collect();
        let logs = self.parameter(None, "log_decay", Tensor::from_f32(&[heads, 1], &logs));
        let shape = self.p.shape_of(self.site.k, 0, 3);
        self.p.expand(logs, shape)
    }

    /// log sigmoid(w·x + b), with `w` zero and `b` spread at first so that heads forget over 2⁴ to 2¹⁰ tokens.
    pub(super) fn learned_decay(&mut self, hidden: ValueId) -> ValueId {
        let heads = self.site.kv_heads;
        let spread = |h: u64| 4.0 + 6.0 * h as f32 / (heads.max(2) - 1) as f32;
        // sigmoid(b) = 1 - 2^-s
        let biases: Vec<f32> = (0..heads).map(|h| (spread(h).exp2() - 1.0).ln()).collect();
        let logits = self.gate(hidden, ["gate.weight", "gate.bias"], &biases);
        let p = &mut *self.p;
        let flipped = p.neg(logits);
        let soft = p.softplus(flipped);
        p.neg(soft)
    }

    /// w·x + b with one row per key/value head, f32 `[batch, kv_heads, sequence]`; `w` is zero at first.
    pub(super) fn gate(&mut self, hidden: ValueId, names: [&str; 2], biases: &[f32]) -> ValueId {
        let (heads, width) = (self.site.kv_heads, self.p.known_dim(hidden, 2));
        let zeros = vec![0.0; (heads * width) as usize];
        let weight = self.parameter(None, names[0], Tensor::from_f32(&[heads, width], &zeros));
        let bias = self.parameter(None, names[1], Tensor::from_f32(&[heads], biases));
        let dtype = self.gate_type(hidden);
        let p = &mut *self.p;
        let (x, weight) = (p.cast(hidden, dtype), p.cast(weight, dtype));
        let products = p.linear(x, weight, None);
        let products = p.cast(products, DType::F32);
        let logits = p.add(products, bias);
        p.transpose(logits, &[0, 2, 1])
    }

    /// β_t = sigmoid(w·x + b) of the delta rule, with `w` zero at first.
    pub(super) fn beta(&mut self) -> Option<ValueId> {
        let hidden = self.site.hidden.filter(|_| self.options.recipe.rule == Rule::Delta)?;
        let biases = vec![BETA; self.site.kv_heads as usize];
        let logits = self.gate(hidden, ["beta.weight", "beta.bias"], &biases);
        Some(self.p.sigmoid(logits))
    }

    /// Of the product w·x: what is served multiplies in the model's own f16, which is as fine as its hidden states.
    pub(super) fn gate_type(&mut self, hidden: ValueId) -> DType {
        let own = self.p.dtype(hidden);
        match self.options.form.is_served() && own == DType::F16 {
            true => own,
            false => DType::F32,
        }
    }
}
