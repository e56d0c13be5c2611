//! Softmax over slots, as two recurrences. The scores of query i, s K_i q_i = Σ_{j≤i} (s q_i·k_j) e_j, are what it reads of a state
//! that holds k_j ⊗ e_j, and with p_i their softmax, p_iᵀ V_i = Σ_{j≤i} (p_i·f_j) v_j what it reads of one that holds f_j ⊗ v_j.
//!
//! The second state has the name of a normaliser, as one row for each head.

use super::features::Features;
use super::{Linear, SiteWriter};
use crate::attention::lower::{Dims, HeadOrder, Lowered, Recurrence, RecurrentState, Sums, bidirectional};
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
use dijiang_format::names::StatePart;
use dijiang_format::recipe::Slots;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn slots(&mut self, slots: Slots, valid: Option<ValueId>) -> Linear {
        let [e, f] = ["slots.keys", "slots.values"].map(|name| self.weights_of_slots(name, slots, valid));
        let Features { q, k, .. } = self.features();
        let count = i64::from(slots.count);
        let (features, value_dim) = (self.site.head_dim as i64, self.site.value_dim as i64);
        let dims = Dims { features, value_dim: count, divides: false, ..self.dims(q) };
        let keys = [features as u64, count as u64];
        let past =
            self.site.mask.is_causal().then(|| self.past(StatePart::Sums, DType::F32, &self.of_heads(&keys)));
        let scored = self.summed([q, k, e], past, dims);
        let shares = self.p.softmax(scored.sums.num, -1);
        let shares = self.for_form(shares, scored.sums.order);
        let f = self.for_form(f, HeadOrder::HeadMajor);
        let v = self.p.cast(self.site.v, DType::F32);
        let dims = Dims { features: count, value_dim, ..dims };
        let past = self.site.mask.is_causal().then(|| self.past_values(dims));
        let read = self.summed([shares, f, v], past, dims);
        let state = scored.state.zip(read.state).map(|(s, values)| {
            let row = self.p.reshape(values, &[0, 0, count * value_dim]);
            RecurrentState { s, z: Some(row) }
        });
        let (read, order) = (read.sums.num, read.sums.order);
        Linear { read, sums: read, order, taken: None, state }
    }

    fn of_heads(&self, rest: &[u64]) -> Vec<u64> {
        std::iter::once(self.site.kv_heads).chain(rest.iter().copied()).collect()
    }

    /// V, `[batch, kv_heads, slots, value_dim]`
    fn past_values(&mut self, dims: Dims) -> ValueId {
        let row = self.past(
            StatePart::Normalizer,
            DType::F32,
            &self.of_heads(&[(dims.features * dims.value_dim) as u64]),
        );
        self.p.reshape(row, &[0, 0, dims.features, dims.value_dim])
    }

    /// What the queries read of Σ k ⊗ v, and the sums after the last token.
    fn summed(&mut self, [q, k, v]: [ValueId; 3], past: Option<ValueId>, dims: Dims) -> Summed {
        let Some(s) = past else {
            return Summed {
                sums: bidirectional::lower(self.p, self.options.form, [q, k, v], dims),
                state: None,
            };
        };
        let state = RecurrentState { s, z: None };
        let (log_decay, beta) = (None, None);
        // Padding has no weights.
        let recurrence = Recurrence { q, k, v, valid: None, log_decay, beta, state, dims };
        let Lowered { sums, state } = self.options.form.lower(self.p, &recurrence);
        Summed { sums, state: Some(state.s) }
    }

    /// In the order that the form wants queries and keys in.
    fn for_form(&mut self, x: ValueId, order: HeadOrder) -> ValueId {
        match (self.puts_heads_first(), order) {
            (true, HeadOrder::HeadMajor) => self.p.transpose(x, &[1, 0, 2, 3]),
            (true, HeadOrder::TokenMajor) => self.p.transpose(x, &[2, 0, 1, 3]),
            (false, order) => self.in_order(x, order, HeadOrder::HeadMajor),
        }
    }

    /// e or f of each token, f32 `[batch, kv_heads, sequence, slots]`, 0 on padding. A position past the last is
    /// an error of the runtime.
    fn weights_of_slots(&mut self, name: &str, slots: Slots, valid: Option<ValueId>) -> ValueId {
        let (count, heads) = (u64::from(slots.count), self.site.kv_heads);
        let positions = slots.positions.unwrap_or(1);
        let mut random = Random::named(self.options.seed, &format!("layer.{}.{name}", self.site.layer));
        // As the published code draws them.
        let most = (count as f64).sqrt().recip();
        let drawn = (0..positions * heads * count).map(|_| ((2.0 * random.uniform() - 1.0) * most) as f32);
        let table = Tensor::from_f32(&[positions, heads * count], &drawn.collect::<Vec<_>>());
        let table = self.parameter(None, name, table);
        let Some(places) = self.places() else { return table };
        let rows = self.p.gather(table, places, 0);
        let rows = self.p.reshape(rows, &[0, 0, heads as i64, count as i64]);
        let rows = self.p.transpose(rows, &[0, 2, 1, 3]);
        let Some(valid) = valid else { return rows };
        let tokens = self.p.unsqueeze(valid, &[1, 3]);
        self.p.mul(rows, tokens)
    }
}

struct Summed {
    sums: Sums,
    state: Option<ValueId>,
}
