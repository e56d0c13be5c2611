//! Feature maps φ: R^d → R^m with φ(q)·φ(k) in the place of exp(q·k).
//!
//! One map per file, each twice: [`FeatureMap::emit`] writes it into a graph, [`FeatureMap::eval`]
//! computes it in f64 by other code, as the oracle. Both take x̂ = x·√scale, so that φ stands for
//! the exponential of the scaled score.

use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;
use std::collections::BTreeMap;

pub mod frequency;
pub mod quality;
pub mod recipe_check;

mod dct_softmax;
mod pff;
mod prf;
mod wdcf;

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

/// A parameter of a map, f32.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub name: &'static str,
    /// One tensor for queries and keys; otherwise each has its own.
    pub shared: bool,
    pub tensor: Tensor,
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
    fn log_weights(&self) -> Option<&'static str> {
        None
    }

    /// Whether features are positive and sum to one, which half precision can hold.
    fn sums_to_one(&self) -> bool {
        false
    }

    /// The names of its parameters.
    fn parameter_names(&self) -> &'static [&'static str];

    /// The learned parameter `[heads, m, head_dim]` that holds the frequencies T C, which may then be scaled.
    fn frequencies(&self) -> Option<&'static str> {
        None
    }

    /// The initial parameters of one attention site, for `heads` heads of one role. Shared ones
    /// must come out equal for both roles: draw them first.
    fn parameters(
        &self,
        spec: &MapSpec,
        heads: usize,
        head_dim: usize,
        random: &mut Random,
    ) -> Vec<Parameter>;

    /// Writes φ: `x` `[batch, heads, sequence, head_dim]` → `[batch, heads, sequence, m]`, or without the batch;
    /// parameters have the type of `x`.
    fn emit(&self, p: &mut Patch<'_>, x: ValueId, parameters: &Emitted, role: Role) -> ValueId;

    /// φ of one vector.
    fn eval(&self, x: &[f64], parameters: &Numbers, role: Role) -> Vec<f64>;
}

/// Every map.
pub static MAPS: &[&dyn FeatureMap] =
    &[&dct_softmax::DctSoftmax, &pff::Pff, &prf::Prf, &wdcf::Wdcf, &pff::Wpff];

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
