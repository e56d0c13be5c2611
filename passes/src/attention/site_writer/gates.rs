//! Decays and rates of writing: what the hidden state says of the state.

use super::SiteWriter;
use crate::attention::lower::Form;
use crate::attention::site::Hidden;
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::{Decay, Rule};

/// The logit of β at first: most of what a key holds is replaced.
const BETA: f32 = 2.0;

/// What the hidden state says of each token.
pub(super) struct Gates {
    /// log a_t, `[batch, kv_heads, sequence]`
    pub(super) log_decay: Option<ValueId>,
    /// β_t, `[batch, kv_heads, sequence]`
    pub(super) beta: Option<ValueId>,
}

/// The parameters of w·x + b, with one row per key/value head.
#[derive(Clone, Copy)]
struct Gate {
    /// `[kv_heads, hidden]`
    weight: ValueId,
    /// `[kv_heads]`
    bias: ValueId,
}

/// 1 - γ of a head, from 1/32 of the first to 1/512 of the last, evenly spaced in their logarithms.
fn released(head: u64, heads: u64) -> f64 {
    let share = head as f64 / (heads.max(2) - 1) as f64;
    (-5.0 - 4.0 * share).exp2()
}

impl SiteWriter<'_, '_, '_> {
    /// The hidden state that the values are projected from, `[batch, sequence, hidden]`.
    pub(super) fn hidden(&mut self) -> Option<ValueId> {
        let Hidden { value, tokens_first } = self.site.hidden?;
        Some(if tokens_first { self.p.transpose(value, &[1, 0, 2]) } else { value })
    }

    pub(super) fn gates(&mut self) -> Gates {
        let is_learned = self.options.recipe.decay == Decay::Learned;
        let at_once = self.options.form.is_served() && self.plan.rule == Rule::Delta && is_learned;
        match self.hidden().filter(|_| at_once) {
            Some(hidden) => self.gates_at_once(hidden),
            None => Gates { log_decay: self.log_decay(), beta: self.beta() },
        }
    }

    /// Both by one product: so narrow a one costs more to begin than to compute.
    fn gates_at_once(&mut self, hidden: ValueId) -> Gates {
        let (decay, beta) = (self.decay_gate(hidden), self.beta_gate(hidden));
        let weight = self.p.concat(&[decay.weight, beta.weight], 0);
        let bias = self.p.concat(&[decay.bias, beta.bias], 0);
        let logits = self.gate(hidden, Gate { weight, bias });
        let p = &mut *self.p;
        let heads = self.site.kv_heads as i64;
        let parts = p.split(logits, 1, &[heads, heads]);
        let beta = p.sigmoid(parts[1]);
        Gates { log_decay: Some(self.log_sigmoid(parts[0])), beta: Some(beta) }
    }

    /// log a_t, `[batch, kv_heads, sequence]`.
    pub(in crate::attention) fn log_decay(&mut self) -> Option<ValueId> {
        match self.options.recipe.decay {
            Decay::None => None,
            Decay::Fixed | Decay::Released => Some(self.fixed_decay()),
            Decay::Learned => self.hidden().map(|hidden| self.learned_decay(hidden)),
        }
    }

    fn fixed_decay(&mut self) -> ValueId {
        let heads = self.site.kv_heads;
        let forgets: fn(u64, u64) -> f64 = match self.options.recipe.decay {
            Decay::Released => released,
            _ => |h, _| (-5.0 - h as f64).exp2(),
        };
        let logs: Vec<f32> = (0..heads).map(|h| (-forgets(h, heads)).ln_1p() as f32).collect();
        let logs = self.parameter(None, "log_decay", Tensor::from_f32(&[heads, 1], &logs));
        let shape = self.p.shape_of(self.site.k, 0, 3);
        self.p.expand(logs, shape)
    }

    /// log sigmoid(w·x + b).
    fn learned_decay(&mut self, hidden: ValueId) -> ValueId {
        let gate = self.decay_gate(hidden);
        let logits = self.gate(hidden, gate);
        self.log_sigmoid(logits)
    }

    fn log_sigmoid(&mut self, logits: ValueId) -> ValueId {
        let p = &mut *self.p;
        let flipped = p.neg(logits);
        let soft = p.softplus(flipped);
        p.neg(soft)
    }

    /// `w` is zero and `b` spread at first so that heads forget over 2⁴ to 2¹⁰ tokens.
    fn decay_gate(&mut self, hidden: ValueId) -> Gate {
        let heads = self.site.kv_heads;
        let spread = |h: u64| 4.0 + 6.0 * h as f32 / (heads.max(2) - 1) as f32;
        // sigmoid(b) = 1 - 2^-s
        let biases: Vec<f32> = (0..heads).map(|h| (spread(h).exp2() - 1.0).ln()).collect();
        self.parameters_of_gate(hidden, ["gate.weight", "gate.bias"], &biases)
    }

    /// `w` is zero at first.
    fn beta_gate(&mut self, hidden: ValueId) -> Gate {
        let biases = vec![BETA; self.site.kv_heads as usize];
        self.parameters_of_gate(hidden, ["beta.weight", "beta.bias"], &biases)
    }

    fn parameters_of_gate(&mut self, hidden: ValueId, names: [&str; 2], biases: &[f32]) -> Gate {
        let (heads, width) = (self.site.kv_heads, self.p.known_dim(hidden, 2));
        let zeros = vec![0.0; (heads * width) as usize];
        let weight = self.parameter(None, names[0], Tensor::from_f32(&[heads, width], &zeros));
        let bias = self.parameter(None, names[1], Tensor::from_f32(&[heads], biases));
        Gate { weight, bias }
    }

    /// w·x + b, f32 `[batch, kv_heads, sequence]`.
    fn gate(&mut self, hidden: ValueId, gate: Gate) -> ValueId {
        let dtype = self.gate_type(hidden);
        let p = &mut *self.p;
        let (x, weight) = (p.cast(hidden, dtype), p.cast(gate.weight, dtype));
        let products = p.linear(x, weight, None);
        let products = p.cast(products, DType::F32);
        let logits = p.add(products, gate.bias);
        p.transpose(logits, &[0, 2, 1])
    }

    /// β_t = sigmoid(w·x + b) of the delta rule.
    fn beta(&mut self) -> Option<ValueId> {
        let hidden = self.hidden().filter(|_| self.plan.rule == Rule::Delta)?;
        let gate = self.beta_gate(hidden);
        let logits = self.gate(hidden, gate);
        Some(self.p.sigmoid(logits))
    }

    /// Of the product w·x: what is served multiplies in the model's own f16, which is as fine as its hidden states. Under the
    /// delta rule only a call of one token does, where it joins another product: what many tokens write adds up.
    fn gate_type(&mut self, hidden: ValueId) -> DType {
        let own = self.p.dtype(hidden);
        let form = self.options.form;
        let is_narrow =
            form.is_served() && (self.plan.rule != Rule::Delta || matches!(form, Form::OneToken(_)));
        match is_narrow && own == DType::F16 {
            true => own,
            false => DType::F32,
        }
    }
}
