//! `dct-unit`: φ(x) = (W x + b) / ‖W x + b‖, W learned per head and started at the orthonormal DCT-II, b at zero. At first
//! φ(q)·φ(k) is the cosine of the angle between q and k, whatever the basis.
//!
//! With more than `head_dim` features, further bases stand below C.

use super::{
    Emitted, FeatureMap, Numbers, ParameterSpec, emit_add_per_head, emit_unit, eval_rows, eval_unit,
    frequency, repeat,
};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::{Basis, MapSpec};

pub(super) struct DctUnit;

impl FeatureMap for DctUnit {
    fn name(&self) -> &'static str {
        "dct-unit"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["features", "basis"]
    }

    fn is_unit(&self) -> bool {
        true
    }

    fn is_positive(&self) -> bool {
        false
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::learned("w"), ParameterSpec::learned("bias")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let w = match spec.basis {
            Basis::Dct => frequency::directions(d, m, random),
            Basis::Identity => (0..m * d).map(|at| f64::from(u8::from(at / d % d == at % d))).collect(),
        };
        vec![repeat(heads, &[m as u64, d as u64], &w), repeat(heads, &[m as u64], &vec![0.0; m])]
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let transposed = p.transpose(parameters["w"], &[0, 2, 1]);
        let products = p.matmul(x, transposed);
        let shifted = emit_add_per_head(p, products, parameters["bias"]);
        emit_unit(p, shifted)
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        let products = eval_rows(&parameters["w"], x);
        let shifted: Vec<f64> = products.iter().zip(&parameters["bias"]).map(|(y, b)| y + b).collect();
        eval_unit(&shifted)
    }
}
