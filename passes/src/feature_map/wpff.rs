//! `wpff`, weighted positive fixed features: φ(x) = D ⊙ the features of [`super::pff`] (Eq. 10), D learned per head and
//! kept as its logarithm.

use super::pff::{self, initial_for_everyone};
use super::{Emitted, FeatureMap, Numbers, ParameterSpec, emit_add_per_head, repeat};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct Wpff;

impl FeatureMap for Wpff {
    fn name(&self) -> &'static str {
        "wpff"
    }

    fn log_weights(&self) -> Option<&'static ParameterSpec> {
        self.parameters().iter().find(|spec| spec.name == "log_d")
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] =
            &[ParameterSpec::fixed("omega"), ParameterSpec::fixed("norm"), ParameterSpec::learned("log_d")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        let m = self.features(spec, d);
        let mut all = initial_for_everyone(spec, d, m, random);
        let log_d = repeat(heads, &[m as u64], &vec![0.0; m]);
        all.push(log_d);
        all
    }

    fn is_exponential(&self) -> bool {
        true
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        let unweighted = pff::exponents(p, x, parameters);
        emit_add_per_head(p, unweighted, parameters["log_d"])
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        pff::exponents_of(x, parameters).iter().zip(&parameters["log_d"]).map(|(e, d)| e + d).collect()
    }
}
