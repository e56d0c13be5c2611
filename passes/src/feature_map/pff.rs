//! `pff`, positive fixed features: φ(x) = exp(-c‖x‖²) / √m · exp(t_i v_i·x) (Eq. 9), and `wpff`, the
//! same weighted by a learned D (Eq. 10).
//!
//! The paper prints c = 1 and lengths t = Φ⁻¹(u), `radial: normal`. With that the product
//! φ(q)·φ(k) does not average to exp(q·k): for a direction v uniform on the sphere and a normal t it
//! averages exp((v·(q + k))²/2). With `radial: chi` the lengths are those of a standard normal vector
//! and c = ½, and the average is exactly exp(q·k).

use super::{
    Emitted, FeatureMap, Numbers, Parameter, Role, dot, emit_add_per_head, emit_exp, emit_norm, eval_exp,
    eval_rows, frequency, repeat, single,
};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::numeric::random::Random;
use dijiang_format::recipe::{MapSpec, Radial};

pub(super) struct Pff;
pub(super) struct Wpff;

impl FeatureMap for Pff {
    fn name(&self) -> &'static str {
        "pff"
    }

    fn parameter_names(&self) -> &'static [&'static str] {
        &["omega", "norm"]
    }

    fn parameters(&self, spec: &MapSpec, _heads: usize, d: usize, random: &mut Random) -> Vec<Parameter> {
        shared_parameters(spec, d, self.features(spec, d), random)
    }

    fn emit(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted, role: Role) -> ValueId {
        let exponents = emit_exponents(p, x, parameters);
        emit_exp(p, exponents, role)
    }

    fn eval(&self, x: &[f64], parameters: &Numbers, role: Role) -> Vec<f64> {
        eval_exp(&eval_exponents(x, parameters), role)
    }
}

impl FeatureMap for Wpff {
    fn name(&self) -> &'static str {
        "wpff"
    }

    fn log_weights(&self) -> Option<&'static str> {
        Some("log_d")
    }

    fn parameter_names(&self) -> &'static [&'static str] {
        &["omega", "norm", "log_d"]
    }

    fn parameters(&self, spec: &MapSpec, heads: usize, d: usize, random: &mut Random) -> Vec<Parameter> {
        let m = self.features(spec, d);
        let mut all = shared_parameters(spec, d, m, random);
        let log_d = repeat(heads, &[m as u64], &vec![0.0; m]);
        all.push(Parameter { name: "log_d", shared: false, tensor: log_d });
        all
    }

    fn emit(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted, role: Role) -> ValueId {
        let exponents = emit_exponents(p, x, parameters);
        let weighted = emit_add_per_head(p, exponents, parameters["log_d"]);
        emit_exp(p, weighted, role)
    }

    fn eval(&self, x: &[f64], parameters: &Numbers, role: Role) -> Vec<f64> {
        let exponents = eval_exponents(x, parameters);
        let weighted: Vec<f64> = exponents.iter().zip(&parameters["log_d"]).map(|(e, d)| e + d).collect();
        eval_exp(&weighted, role)
    }
}

/// c of exp(-c‖x‖²).
fn norm_factor(radial: Radial) -> f64 {
    match radial {
        Radial::Normal => 1.0,
        Radial::Chi => 0.5,
    }
}

fn shared_parameters(spec: &MapSpec, d: usize, m: usize, random: &mut Random) -> Vec<Parameter> {
    let t = frequency::lengths(spec, d, m, random);
    let v = frequency::directions(d, m, random);
    let omega = frequency::scaled(&v, &t);
    // 1/√m goes into the exponent beside the norm.
    let shape = [norm_factor(spec.radial), (m as f64).ln() / 2.0];
    vec![
        Parameter { name: "omega", shared: true, tensor: single(&[m as u64, d as u64], &omega) },
        Parameter { name: "norm", shared: true, tensor: single(&[2], &shape) },
    ]
}

fn emit_exponents(p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId {
    let products = p.linear(x, parameters["omega"], None);
    let norm = emit_norm(p, x, 1.0);
    let parts = p.split(parameters["norm"], 0, &[1, 1]);
    let norm = p.mul(norm, parts[0]);
    let shift = p.add(norm, parts[1]);
    p.sub(products, shift)
}

fn eval_exponents(x: &[f64], parameters: &Numbers) -> Vec<f64> {
    let shift = parameters["norm"][0] * dot(x, x) + parameters["norm"][1];
    eval_rows(&parameters["omega"], x).iter().map(|e| e - shift).collect()
}
