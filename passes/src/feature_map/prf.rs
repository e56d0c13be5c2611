//! `prf`, positive random features: φ(x) = exp(ω x - ‖x‖²/2) / √m, ω ~ N(0, I) (Eq. 5; Performer,
//! Choromanski et al. 2021). The average of φ(q)·φ(k) is exactly exp(q·k).

use super::{Emitted, FeatureMap, Numbers, ParameterSpec, dot, emit_norm, eval_rows, single};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct Prf;

impl FeatureMap for Prf {
    fn name(&self) -> &'static str {
        "prf"
    }

    /// ω is drawn from a normal distribution as it is: no lengths are chosen apart from directions.
    fn fields(&self) -> &'static [&'static str] {
        &["features"]
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::fixed("omega")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, _heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let omega: Vec<f64> = (0..m * d).map(|_| random.normal()).collect();
        vec![single(&[m as u64, d as u64], &omega)]
    }

    fn is_exponential(&self) -> bool {
        true
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let products = p.linear(x, parameters["omega"], None);
        let last = p.rank(products).saturating_sub(1);
        let m = p.known_dim(products, last) as f64;
        let norm = emit_norm(p, x, 0.5);
        let shift = p.add_scalar(norm, m.ln() / 2.0);
        p.sub(products, shift)
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        let products = eval_rows(&parameters["omega"], x);
        let shift = dot(x, x) / 2.0 + (products.len() as f64).ln() / 2.0;
        products.iter().map(|e| e - shift).collect()
    }
}
