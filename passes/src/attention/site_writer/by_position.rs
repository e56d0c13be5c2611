//! Weights of each head by the position of a token, the D1 and D2 of the authors' released code: β_j on the value of token j
//! and α_i on what token i reads, which makes α_i φ(q_i)ᵀ Σ_j γ^(i-j) φ(k_j) ⊗ β_j v_j. There D1_i = α_i γ^i and D2_j = β_j γ^-j,
//! which leave the range of f32 where these stay near one.

use super::SiteWriter;
use crate::attention::lower::{HeadOrder, Sums};
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

impl SiteWriter<'_, '_, '_> {
    /// β_j v_j, f32 `[batch, kv_heads, sequence, value_dim]`
    pub(super) fn weighed_values(&mut self, positions: u64) -> ValueId {
        let weights = self.by_position("positions.values", [positions, self.site.kv_heads]);
        let weights = self.p.transpose(weights, &[0, 2, 1]);
        let weights = self.p.unsqueeze(weights, &[3]);
        let values = self.p.cast(self.site.v, DType::F32);
        self.p.mul(values, weights)
    }

    /// The sums, each times its α_i.
    pub(super) fn weighed_sums(&mut self, sums: Sums, positions: u64) -> Sums {
        let weights = self.by_position("positions.sums", [positions, self.site.heads]);
        let weights = match sums.order {
            HeadOrder::HeadMajor => self.p.transpose(weights, &[0, 2, 1]),
            HeadOrder::TokenMajor => weights,
        };
        let weights = self.p.unsqueeze(weights, &[3]);
        Sums { num: self.p.mul(sums.num, weights), ..sums }
    }

    /// The rows of a table `[positions, heads]` that the positions of the tokens name, f32 `[batch, sequence, heads]`: that of
    /// the last position past it.
    fn by_position(&mut self, name: &str, [positions, heads]: [u64; 2]) -> ValueId {
        let ones = vec![1.0; (positions * heads) as usize];
        let table = self.parameter(None, name, Tensor::from_f32(&[positions, heads], &ones));
        let Some(places) = self.places() else { return table };
        let last = self.p.constant("last_position", Tensor::scalar(DType::I64, positions as f64 - 1.0));
        let places = self.p.min(places, last);
        self.p.gather(table, places, 0)
    }
}
