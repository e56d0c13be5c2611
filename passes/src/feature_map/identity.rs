//! `identity`: φ(x) = x (RetNet, Sun et al. 2023): the scaled score itself in the place of its exponential.

use super::{Emitted, FeatureMap, Numbers};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;

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

    fn emit_plain(&self, _: &mut Patch<'_>, x: ValueId, _: &Emitted) -> ValueId {
        x
    }

    fn eval_plain(&self, x: &[f64], _: &Numbers) -> Vec<f64> {
        x.to_vec()
    }
}
