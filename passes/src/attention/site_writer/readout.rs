//! What is made of φ(q)ᵀ S.

use super::SiteWriter;
use crate::attention::lower::{HeadOrder, Sums};
use crate::feature_map::{self, FeatureMap};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
use dijiang_format::names::EXACT;
use dijiang_format::recipe::Readout;

/// Added to φ(q)·z, so that a query that sees nothing but padding reads zero; in half precision its smallest number.
const EPSILON: f64 = 1e-30;
const HALF_EPSILON: f64 = 5.96e-8;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn read_sum(&mut self, sums: &Sums) -> ValueId {
        let Some(den) = sums.den else {
            self.p.fail("the readout divides by a sum that was not computed".to_owned());
            return sums.num;
        };
        let den = self.divisor(den);
        if !self.puts_heads_first() {
            return self.p.div(sums.num, den);
        }
        // A device is twice as fast at it where rows are one axis.
        let rows = self.p.reshape(sums.num, &[-1, self.site.value_dim as i64]);
        let den = self.p.reshape(den, &[-1, 1]);
        let read = self.p.div(rows, den);
        let like = self.p.shape_of(sums.num, 0, 4);
        self.p.reshape_to(read, like)
    }

    /// φ(q)·z, of which nothing is left to divide by zero.
    fn divisor(&mut self, den: ValueId) -> ValueId {
        let map = feature_map::find(&self.options.recipe.map.kind);
        if let Some(least) = map.and_then(FeatureMap::least_sum) {
            let least = self.p.scalar_like(den, least);
            return self.p.max(den, least);
        }
        let epsilon = if self.p.dtype(den) == DType::F16 { HALF_EPSILON } else { EPSILON };
        self.p.add_scalar(den, epsilon)
    }

    /// A norm, over each head or over groups, gated by SiLU(W_g x) (RetNet; the released code).
    pub(super) fn read_normalised(&mut self, sums: &Sums) -> ValueId {
        let site = self.site;
        let Some(hidden) = self.hidden() else {
            self.p.fail("the readout's gate reads the hidden state, which was not found".to_owned());
            return sums.num;
        };
        let width = self.p.known_dim(hidden, 2);
        let rows = site.heads * site.value_dim;
        let mut random = Random::named(self.options.seed, &format!("layer.{}.readout", self.site.layer));
        let deviation = (width as f64).sqrt().recip();
        let values: Vec<f32> = (0..rows * width).map(|_| (random.normal() * deviation) as f32).collect();
        let weight = self.parameter(None, "readout.weight", Tensor::from_f32(&[rows, width], &values));
        let normal = match self.options.recipe.readout {
            Readout::RmsNorm => self.rms_normal(sums),
            Readout::Sum | Readout::GroupNorm => self.group_normal(sums),
        };
        let gated = |p: &mut Patch<'_>| {
            let wide = p.cast(hidden, DType::F32);
            let gate = p.linear(wide, weight, None);
            let open = p.sigmoid(gate);
            let silu = p.mul(gate, open);
            let heads = p.reshape(silu, &[0, 0, site.heads as i64, site.value_dim as i64]);
            let heads = match sums.order {
                HeadOrder::HeadMajor => p.transpose(heads, &[0, 2, 1, 3]),
                HeadOrder::TokenMajor => heads,
            };
            p.mul(normal, heads)
        };
        match self.options.recipe.readout {
            Readout::GroupNorm => self.p.within(EXACT, gated),
            Readout::Sum | Readout::RmsNorm => gated(self.p),
        }
    }

    /// Of the values of each head, without parameters.
    fn rms_normal(&mut self, sums: &Sums) -> ValueId {
        let ones = self.everywhere("ones", self.site.value_dim, 1.0);
        self.p.rms_norm(sums.num, ones, 1e-6)
    }

    /// Of groups of as many consecutive channels of all heads as there are heads, weighed and shifted channel by channel.
    fn group_normal(&mut self, sums: &Sums) -> ValueId {
        let (heads, width) = (self.site.heads, self.site.value_dim);
        let [ones, zeros] =
            [("ones", 1.0), ("zeros", 0.0)].map(|(name, value)| self.everywhere(name, heads, value));
        let [weight, bias] = [("norm.weight", 1.0), ("norm.bias", 0.0)].map(|(name, value)| {
            let channels = vec![value; (heads * width) as usize];
            self.parameter(None, name, Tensor::from_f32(&[heads * width], &channels))
        });
        let by_token = self.in_order(sums.num, sums.order, HeadOrder::TokenMajor);
        let p = &mut *self.p;
        let groups = p.reshape(by_token, &[0, 0, width as i64, heads as i64]);
        let normal = p.layer_norm(groups, ones, zeros, 1e-5);
        let merged = p.reshape(normal, &[0, 0, (heads * width) as i64]);
        let weighed = p.mul(merged, weight);
        let shifted = p.add(weighed, bias);
        let split = p.reshape(shifted, &[0, 0, heads as i64, width as i64]);
        self.in_order(split, HeadOrder::TokenMajor, sums.order)
    }

    fn everywhere(&mut self, name: &str, width: u64, value: f32) -> ValueId {
        self.p.constant(name, Tensor::from_f32(&[width], &vec![value; width as usize]))
    }
}
