//! `pff`, positive fixed features: φ(x) = exp(-c‖x‖²) / √m · exp(t_i v_i·x) (Eq. 9).
//!
//! The paper prints c = 1 and lengths t = Φ⁻¹(u), `radial: normal`. With that the product
//! φ(q)·φ(k) does not average to exp(q·k): for a direction v uniform on the sphere and a normal t it
//! averages exp((v·(q + k))²/2). With `radial: chi` the lengths are those of a standard normal vector
//! and c = ½, and the average is exactly exp(q·k).

use super::{Emitted, FeatureMap, Numbers, ParameterSpec, dot, emit_norm, eval_rows, frequency, single};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::{MapSpec, Radial};

pub(super) struct Pff;

impl FeatureMap for Pff {
    fn name(&self) -> &'static str {
        "pff"
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const ALL: &[ParameterSpec] = &[ParameterSpec::fixed("omega"), ParameterSpec::fixed("norm")];
        ALL
    }

    fn initial(&self, spec: &MapSpec, _heads: usize, d: usize, random: &mut Random) -> Vec<Tensor> {
        initial_for_everyone(spec, d, self.features(spec, d), random)
    }

    fn is_exponential(&self) -> bool {
        true
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
        exponents(p, x, parameters)
    }

    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64> {
        exponents_of(x, parameters)
    }
}

/// c of exp(-c‖x‖²).
fn norm_factor(radial: Radial) -> f64 {
    match radial {
        Radial::Normal => 1.0,
        Radial::Chi => 0.5,
    }
}

pub(super) fn initial_for_everyone(spec: &MapSpec, d: usize, m: usize, random: &mut Random) -> Vec<Tensor> {
    let t = frequency::lengths(spec, d, m, random);
    let v = frequency::directions(d, m, random);
    let omega = frequency::scaled(&v, &t);
    // 1/√m goes into the exponent beside the norm.
    let shape = [norm_factor(spec.radial), (m as f64).ln() / 2.0];
    vec![single(&[m as u64, d as u64], &omega), single(&[2], &shape)]
}

pub(super) fn exponents(p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
    let products = p.linear(x, parameters["omega"], None);
    let norm = emit_norm(p, x, 1.0);
    let parts = p.split(parameters["norm"], 0, &[1, 1]);
    let norm = p.mul(norm, parts[0]);
    let shift = p.add(norm, parts[1]);
    p.sub(products, shift)
}

pub(super) fn exponents_of(x: &[f64], parameters: &Numbers) -> Vec<f64> {
    let shift = parameters["norm"][0] * dot(x, x) + parameters["norm"][1];
    eval_rows(&parameters["omega"], x).iter().map(|e| e - shift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature_map::{Numbers, Role};
    use crate::numeric::quantile;
    use dijiang_format::recipe::Lengths;

    /// `radial: normal` and `lengths: sampled` are Eq. 9 letter by letter: t_i ~ U(0, 1), v_i on the sphere, e^{-‖x‖²} before.
    #[test]
    fn the_equation_as_it_is_printed() {
        let (d, x) = (4, [0.3, -0.7, 0.2, 0.5]);
        let printed =
            MapSpec { lengths: Lengths::Sampled, radial: Radial::Normal, features: 2, ..MapSpec::default() };
        let m = Pff.features(&printed, d);
        let drawn = Pff.initial(&printed, 1, d, &mut Random::new(5));
        let named = Pff.parameters().iter().zip(&drawn).map(|(spec, tensor)| (spec.name, tensor.to_f64()));
        let numbers: Numbers = named.collect();
        let mut random = Random::new(5);
        let t: Vec<f64> = (0..m).map(|_| random.uniform()).collect();
        let v = frequency::directions(d, m, &mut random);
        let found = Pff.eval(&x, &numbers, Role::Key);
        for (i, found) in found.iter().enumerate() {
            let along: f64 = (0..d).map(|j| x[j] * v[i * d + j]).sum();
            let want = (-dot(&x, &x)).exp() / (m as f64).sqrt() * (quantile::normal(t[i]) * along).exp();
            // The parameters are stored in f32.
            assert!((found / want - 1.0).abs() < 1e-6, "{i}: {found} {want}");
        }
    }
}
