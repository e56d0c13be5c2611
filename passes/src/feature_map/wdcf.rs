//! `wdcf`, weighted discrete cosine features: φ(x) = D ⊙ exp(T C x) (Eq. 11 and 12), C the
//! orthonormal DCT-II, T = diag(t), D kept as its logarithm.
//!
//! With more than `head_dim` features, cosine and sine transforms of other boundary conditions stand below C.

use super::{
    Emitted, FeatureMap, Numbers, ParameterSpec, emit_add_per_head, eval_rows, frequency, repeat, single,
};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct Wdcf;

impl FeatureMap for Wdcf {
    fn name(&self) -> &'static str {
        "wdcf"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["features", "lengths", "radial", "unit"]
    }

    fn log_weights(&self) -> Option<&'static ParameterSpec> {
        self.parameters().iter().find(|spec| spec.name == "log_d")
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] =
            &[ParameterSpec::fixed("t"), ParameterSpec::fixed("c"), ParameterSpec::learned("log_d")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let t = frequency::lengths(spec, d, m, random);
        let c = frequency::family(d, m, random);
        vec![
            single(&[m as u64], &t),
            single(&[m as u64, d as u64], &c),
            repeat(heads, &[m as u64], &vec![0.0; m]),
        ]
    }

    fn is_exponential(&self) -> bool {
        true
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let transformed = p.linear(x, parameters["c"], None);
        let scaled = p.mul(transformed, parameters["t"]);
        emit_add_per_head(p, scaled, parameters["log_d"])
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        let omega = frequency::scaled(&parameters["c"], &parameters["t"]);
        eval_rows(&omega, x).iter().zip(&parameters["log_d"]).map(|(e, d)| e + d).collect()
    }
}
