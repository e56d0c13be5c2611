//! `cosformer`: φ(x) = relu(x), turned by the position i of its token, which counts from 1: [φ sin(πi/2M), φ cos(πi/2M)] (Qin et
//! al. 2022). φ(q_i)·φ(k_j) is then relu(q)·relu(k) cos(π(i - j)/2M), which is negative where tokens are more than M apart: M is
//! as many positions as the model has, and there are no more.

use super::{Emitted, FeatureMap, Numbers};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use dijiang_format::recipe::MapSpec;

pub(super) struct Cosformer;

impl FeatureMap for Cosformer {
    fn name(&self) -> &'static str {
        "cosformer"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["positions"]
    }

    /// Twice as many as φ, as they are turned.
    fn features(&self, _: &MapSpec, head_dim: usize) -> usize {
        2 * head_dim
    }

    /// Queries and keys as they are.
    fn is_scaled(&self) -> bool {
        false
    }

    fn is_turned(&self) -> bool {
        true
    }

    fn least_sum(&self) -> Option<f64> {
        Some(1e-6)
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, _: &Emitted) -> ValueId {
        p.relu(x)
    }

    fn eval_plain(&self, x: &[f64], _: &Numbers) -> Vec<f64> {
        x.iter().map(|x| x.max(0.0)).collect()
    }
}
