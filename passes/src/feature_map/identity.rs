//! `identity`: φ(x) = x (RetNet, Sun et al. 2023): the scaled score itself in the place of its exponential.

use super::{Emitted, FeatureMap, Numbers, ParameterSpec, Role};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

pub(super) struct Identity;

impl FeatureMap for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn fields(&self) -> &'static [&'static str] {
        &[]
    }

    fn is_positive(&self) -> bool {
        false
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[]
    }

    fn initial(&self, _: &MapSpec, _heads: usize, _head_dim: usize, _: &mut Random) -> Vec<Tensor> {
        Vec::new()
    }

    fn emit(&self, _: &mut Patch<'_>, x: ValueId, _: &Emitted, _role: Role) -> ValueId {
        x
    }

    fn eval(&self, x: &[f64], _: &Numbers, _role: Role) -> Vec<f64> {
        x.to_vec()
    }
}
