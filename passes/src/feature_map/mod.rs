//! Feature maps φ: R^d → R^m with φ(q)·φ(k) in the place of exp(q·k).
//!
//! One map per file, each twice: [`FeatureMap::emit`] writes it into a graph, [`FeatureMap::eval`]
//! computes it in f64 by other code, as the oracle. Both take x̂ = x·√scale, so that φ stands for
//! the exponential of the scaled score; unit features, which do not depend on the length of x, take x.

use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;
use std::collections::BTreeMap;

pub mod added;
pub mod frequency;
pub mod quality;
pub mod recipe_check;

mod cosformer;
mod dct_softmax;
mod dct_transposed;
mod dct_unit;
mod elu;
mod identity;
mod pff;
mod prf;
mod wdcf;
mod wdct_unit;
mod wpff;

/// Whose features: the parameters may differ, and only the keys' scale matters (a factor per query
/// cancels in every readout), so the queries' largest exponent is taken out before the exponential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Query,
    Key,
}

impl Role {
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Query => "q",
            Self::Key => "k",
        }
    }
}

/// Whose a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// One tensor for all heads, those of queries and those of keys.
    Everyone,
    /// One part for each head, of queries and of keys.
    Head,
}

/// A parameter of a map as the map declares it, f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterSpec {
    pub name: &'static str,
    pub owner: Owner,
    /// Whether training changes it.
    pub trained: bool,
    /// Whether it is drawn at random alone, so that training can draw it anew.
    pub is_drawn: bool,
}

impl ParameterSpec {
    /// What a recipe draws or computes once, for all heads.
    const fn fixed(name: &'static str) -> Self {
        Self { name, owner: Owner::Everyone, trained: false, is_drawn: false }
    }

    /// What a recipe draws at random, for all heads.
    const fn drawn(name: &'static str) -> Self {
        Self { is_drawn: true, ..Self::fixed(name) }
    }

    /// What each head learns.
    const fn learned(name: &'static str) -> Self {
        Self { name, owner: Owner::Head, trained: true, is_drawn: false }
    }

    /// The part of its name that says whose it is.
    pub fn role(&self, role: Role) -> Option<Role> {
        (self.owner == Owner::Head).then_some(role)
    }
}

/// A map's parameters in a graph, by name.
pub type Emitted = BTreeMap<&'static str, ValueId>;

/// A map's parameters as numbers, by name, for one head: per-head tensors are already cut.
pub type Numbers = BTreeMap<&'static str, Vec<f64>>;

/// One feature map. Maps hold no state.
pub trait FeatureMap: Sync {
    /// As in recipes: the file's name with dashes.
    fn name(&self) -> &'static str;

    /// The fields of [`MapSpec`] that it reads besides `kind`.
    fn fields(&self) -> &'static [&'static str] {
        &["features", "lengths", "radial"]
    }

    /// m, the number of features, for heads of `head_dim`.
    fn features(&self, spec: &MapSpec, head_dim: usize) -> usize {
        spec.features * head_dim
    }

    /// The parameter `[heads, m]` whose exponential weighs each feature of a query, up to a factor per query;
    /// `None` where the map has no such weights, which then cannot be fitted.
    fn log_weights(&self) -> Option<&'static ParameterSpec> {
        None
    }

    /// Whether features are positive and sum to one, which half precision can hold.
    fn sums_to_one(&self) -> bool {
        false
    }

    /// Whether it takes x̂ = x·√scale. What does not depend on the length of x takes x as it is.
    fn is_scaled(&self) -> bool {
        !self.is_unit()
    }

    /// Whether features have length one, as the delta rule wants them.
    fn is_unit(&self) -> bool {
        false
    }

    /// Whether features are positive, so that φ(q)·z does not vanish.
    fn is_positive(&self) -> bool {
        true
    }

    /// Whether features are turned by the position of their token: [φ sin(πi/2M), φ cos(πi/2M)], i counted from 1 and M the
    /// `positions` of the spec. [`features`](Self::features) counts both.
    fn is_turned(&self) -> bool {
        false
    }

    /// The least that φ(q)·z counts as, where it may be next to nothing.
    fn least_sum(&self) -> Option<f64> {
        None
    }

    /// Its parameters, in the order they are drawn.
    fn parameters(&self) -> &'static [ParameterSpec] {
        &[]
    }

    /// The learned parameter `[heads, m, head_dim]` that holds the frequencies T C, which may then be scaled.
    fn frequencies(&self) -> Option<&'static ParameterSpec> {
        None
    }

    /// What the parameters of one attention site are at first, for `heads` heads of one role, in their order. Those of
    /// everyone must come out equal for both roles: draw them first.
    fn initial(&self, _spec: &MapSpec, _heads: usize, _head_dim: usize, _random: &mut Random) -> Vec<Tensor> {
        Vec::new()
    }

    /// Whether the features are an exponential.
    fn is_exponential(&self) -> bool {
        false
    }

    /// Writes the features, or where they [are an exponential](Self::is_exponential) its exponents: `x` and what comes of it
    /// as of [`emit`](Self::emit).
    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> ValueId;

    /// The same of one vector, in f64.
    fn eval_plain(&self, x: &[f64], parameters: &Numbers) -> Vec<f64>;

    /// Writes φ: `x` `[batch, heads, sequence, head_dim]` → `[batch, heads, sequence, m]`, or without the batch;
    /// parameters have the type of `x`.
    fn emit(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted, role: Role) -> ValueId {
        let plain = self.emit_plain(p, x, parameters);
        if self.is_exponential() { emit_exp(p, plain, role) } else { plain }
    }

    /// The exponents `[.., m]` whose exponential the features are; none where they are no exponential. [`emit`](Self::emit)
    /// takes the largest of a query's out of its features.
    fn emit_exponents(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted) -> Option<ValueId> {
        self.is_exponential().then(|| self.emit_plain(p, x, parameters))
    }

    /// The same of one vector, in f64.
    fn eval_exponents(&self, x: &[f64], parameters: &Numbers) -> Option<Vec<f64>> {
        self.is_exponential().then(|| self.eval_plain(x, parameters))
    }

    /// φ of one vector.
    fn eval(&self, x: &[f64], parameters: &Numbers, role: Role) -> Vec<f64> {
        let plain = self.eval_plain(x, parameters);
        if self.is_exponential() { eval_exp(&plain, role) } else { plain }
    }
}

/// Every map.
pub static MAPS: &[&dyn FeatureMap] = &[
    &cosformer::Cosformer,
    &dct_softmax::DctSoftmax,
    &dct_transposed::DctTransposed,
    &dct_unit::DctUnit,
    &elu::Elu,
    &identity::Identity,
    &pff::Pff,
    &prf::Prf,
    &wdcf::Wdcf,
    &wdct_unit::WdctUnit,
    &wpff::Wpff,
];

/// The map of a recipe.
pub fn find(name: &str) -> Option<&'static dyn FeatureMap> {
    MAPS.iter().copied().find(|m| m.name() == name)
}

/// Keys' exponents are kept between this and its negative: sums over millions of tokens stay in the
/// range of f32, and keys that are all far too long for it weigh alike instead of nothing.
const MAX_EXPONENT: f64 = 60.0;

/// exp of `[batch, heads, sequence, m]`, kept in range.
fn emit_exp(p: &mut Patch<'_>, exponents: ValueId, role: Role) -> ValueId {
    let bounded = match role {
        Role::Query => {
            let max = p.reduce("ReduceMax", exponents, &[-1], true);
            p.sub(exponents, max)
        }
        Role::Key => {
            let (most, least) =
                (p.scalar_like(exponents, MAX_EXPONENT), p.scalar_like(exponents, -MAX_EXPONENT));
            let bounded = p.min(exponents, most);
            p.max(bounded, least)
        }
    };
    p.exp(bounded)
}

/// The same in f64.
fn eval_exp(exponents: &[f64], role: Role) -> Vec<f64> {
    let max = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bounded = exponents.iter().map(|x| match role {
        Role::Query => x - max,
        Role::Key => x.clamp(-MAX_EXPONENT, MAX_EXPONENT),
    });
    bounded.map(f64::exp).collect()
}

/// What features of the token at a position, counted from 0, are turned to in f64.
pub fn eval_turned(features: &[f64], position: usize, positions: u64) -> Vec<f64> {
    let angle = std::f64::consts::FRAC_PI_2 * (position + 1) as f64 / positions as f64;
    [angle.sin(), angle.cos()].iter().flat_map(|turn| features.iter().map(move |x| x * turn)).collect()
}

/// Added to the squared length of features.
const LEAST_SQUARE: f64 = 1e-12;

/// x / √(‖x‖² + ε) along the last axis, f32: an RMS norm with the weight 1/√m, which runtimes have as one kernel.
pub(crate) fn emit_unit(p: &mut Patch<'_>, x: ValueId) -> ValueId {
    let last = p.rank(x) - 1;
    let m = p.known_dim(x, last);
    let square = p.mul(x, x);
    let mean = p.reduce("ReduceMean", square, &[-1], true);
    let shifted = p.add_scalar(mean, LEAST_SQUARE / m as f64);
    let root = p.sqrt(shifted);
    let normal = p.div(x, root);
    let weight = vec![(m as f32).sqrt().recip(); m as usize];
    let weight = p.constant("unit", Tensor::from_f32(&[m], &weight));
    p.mul(normal, weight)
}

/// The same in f64.
pub fn eval_unit(x: &[f64]) -> Vec<f64> {
    let length = (dot(x, x) + LEAST_SQUARE).sqrt();
    x.iter().map(|x| x / length).collect()
}

/// Adds a per-head vector `[heads, m]` to `[batch, heads, sequence, m]`.
fn emit_add_per_head(p: &mut Patch<'_>, x: ValueId, per_head: ValueId) -> ValueId {
    let spread = p.unsqueeze(per_head, &[1]);
    p.add(x, spread)
}

/// ‖x‖²·factor, `[batch, heads, sequence, 1]`.
fn emit_norm(p: &mut Patch<'_>, x: ValueId, factor: f64) -> ValueId {
    let square = p.mul(x, x);
    let sum = p.reduce("ReduceSum", square, &[-1], true);
    p.mul_scalar(sum, factor)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Rows · x, for row-major rows as long as x.
fn eval_rows(rows: &[f64], x: &[f64]) -> Vec<f64> {
    rows.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

/// The softmax of a row.
fn eval_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|x| x / sum).collect()
}

/// A per-head parameter, the same for every head at first.
fn repeat(heads: usize, tail: &[u64], values: &[f64]) -> Tensor {
    let dims = [&[heads as u64], tail].concat();
    let one: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Tensor::from_f32(&dims, &one.repeat(heads))
}

/// A parameter shared by all heads.
fn single(dims: &[u64], values: &[f64]) -> Tensor {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Tensor::from_f32(dims, &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::file_stems;

    /// What lies beside the maps and is none.
    const BESIDE: [&str; 4] = ["added", "frequency", "quality", "recipe_check"];

    #[test]
    fn every_file_is_in_the_table() {
        let mut files = file_stems("src/feature_map");
        files.retain(|name| !BESIDE.contains(&name.as_str()));
        let names: Vec<String> = MAPS.iter().map(|map| map.name().replace('-', "_")).collect();
        assert_eq!(files, names);
    }

    #[test]
    fn a_map_draws_what_it_declares() {
        for map in MAPS {
            let spec = MapSpec { kind: map.name().to_owned(), ..MapSpec::default() };
            let drawn = map.initial(&spec, 3, 4, &mut Random::named(1, "layer.0"));
            assert_eq!(drawn.len(), map.parameters().len(), "{}", map.name());
            for (parameter, tensor) in map.parameters().iter().zip(&drawn) {
                let by_head = tensor.dims().first() == Some(&3);
                assert_eq!(by_head, parameter.owner == Owner::Head, "{} {}", map.name(), parameter.name);
            }
            for named in [map.log_weights(), map.frequencies()].into_iter().flatten() {
                assert!(map.parameters().contains(named), "{} {}", map.name(), named.name);
            }
        }
    }
}
