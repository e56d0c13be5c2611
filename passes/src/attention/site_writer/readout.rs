//! What is made of φ(q)ᵀ S.

use super::SiteWriter;
use crate::attention::lower::{HeadOrder, Sums};
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
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
        let epsilon = if self.p.dtype(den) == DType::F16 { HALF_EPSILON } else { EPSILON };
        let den = self.p.add_scalar(den, epsilon);
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

    /// A norm over each head, gated by SiLU(W_g x) (RetNet; the released code).
    pub(super) fn read_normalised(&mut self, sums: &Sums) -> ValueId {
        let site = self.site;
        let Some(hidden) = site.hidden else {
            self.p.fail("the readout's gate reads the hidden state, which was not found".to_owned());
            return sums.num;
        };
        let width = self.p.known_dim(hidden, 2);
        let rows = site.heads * site.value_dim;
        let mut random = Random::named(self.options.seed, &format!("layer.{}.readout", self.site.layer));
        let deviation = (width as f64).sqrt().recip();
        let values: Vec<f32> = (0..rows * width).map(|_| (random.normal() * deviation) as f32).collect();
        let weight = self.parameter(None, "readout.weight", Tensor::from_f32(&[rows, width], &values));
        let normal = self.normal(sums.num);
        let p = &mut *self.p;
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
    }

    /// Of the values of each head, without parameters; the epsilons are those of the two sources.
    fn normal(&mut self, x: ValueId) -> ValueId {
        let width = self.site.value_dim;
        let p = &mut *self.p;
        let mut all = |name: &str, value: f32| {
            p.constant(name, Tensor::from_f32(&[width], &vec![value; width as usize]))
        };
        let ones = all("ones", 1.0);
        match self.options.recipe.readout {
            Readout::RmsNorm => p.rms_norm(x, ones, 1e-6),
            Readout::Sum | Readout::GroupNorm => {
                let zeros = all("zeros", 0.0);
                p.layer_norm(x, ones, zeros, 1e-5)
            }
        }
    }
}
