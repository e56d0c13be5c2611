//! `wdct-unit`: φ(x) = D ⊙ C x / ‖D ⊙ C x‖, C the orthonormal DCT-II and D learned per head, kept as its logarithm: the
//! paper's weighted DCT (Eq. 12) without its exponential.
//!
//! With more than `head_dim` features, further bases stand below C.

use super::{
    Emitted, FeatureMap, Numbers, ParameterSpec, emit_unit, eval_rows, eval_unit, frequency, repeat, single,
};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct WdctUnit;

impl FeatureMap for WdctUnit {
    fn name(&self) -> &'static str {
        "wdct-unit"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["features"]
    }

    fn is_unit(&self) -> bool {
        true
    }

    fn is_positive(&self) -> bool {
        false
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::fixed("c"), ParameterSpec::learned("log_d")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let c = frequency::directions(d, m, random);
        vec![single(&[m as u64, d as u64], &c), repeat(heads, &[m as u64], &vec![0.0; m])]
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let transformed = p.linear(x, parameters["c"], None);
        let weights = p.exp(parameters["log_d"]);
        let weights = p.unsqueeze(weights, &[1]);
        let weighed = p.mul(transformed, weights);
        emit_unit(p, weighed)
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        let transformed = eval_rows(&parameters["c"], x);
        let weighed: Vec<f64> =
            transformed.iter().zip(&parameters["log_d"]).map(|(y, d)| y * d.exp()).collect();
        eval_unit(&weighed)
    }
}
