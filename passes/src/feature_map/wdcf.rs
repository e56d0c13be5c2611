//! `wdcf`, weighted discrete cosine features: φ(x) = D ⊙ exp(T C x) (Eq. 11 and 12), C the
//! orthonormal DCT-II, T = diag(t), D kept as its logarithm.
//!
//! With more than `head_dim` features, further bases take the place of C.

use super::{
    Emitted, FeatureMap, Numbers, Parameter, Role, emit_add_per_head, emit_exp, eval_exp, eval_rows,
    frequency, repeat, single,
};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct Wdcf;

impl FeatureMap for Wdcf {
    fn name(&self) -> &'static str {
        "wdcf"
    }

    fn log_weights(&self) -> Option<&'static str> {
        Some("log_d")
    }

    fn parameter_names(&self) -> &'static [&'static str] {
        &["t", "c", "log_d"]
    }

    fn parameters(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Parameter> {
        let m = self.features(spec, d);
        let t = frequency::lengths(spec, d, m, random);
        let c = frequency::directions(d, m, random);
        vec![
            Parameter { name: "t", shared: true, tensor: single(&[m as u64], &t) },
            Parameter { name: "c", shared: true, tensor: single(&[m as u64, d as u64], &c) },
            Parameter { name: "log_d", shared: false, tensor: repeat(heads, &[m as u64], &vec![0.0; m]) },
        ]
    }

    fn emit(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted, role: Role) -> ValueId {
        let transformed = p.linear(x, parameters["c"], None);
        let scaled = p.mul(transformed, parameters["t"]);
        let weighted = emit_add_per_head(p, scaled, parameters["log_d"]);
        emit_exp(p, weighted, role)
    }

    fn eval(&self, x: &[f64], parameters: &Numbers, role: Role) -> Vec<f64> {
        let omega = frequency::scaled(&parameters["c"], &parameters["t"]);
        let exponents: Vec<f64> =
            eval_rows(&omega, x).iter().zip(&parameters["log_d"]).map(|(e, d)| e + d).collect();
        eval_exp(&exponents, role)
    }
}
