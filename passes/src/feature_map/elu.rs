//! `elu`: φ(x) = elu(x) + 1, feature by feature (Katharopoulos et al. 2020): x + 1 above zero, and exp(x) below.

use super::{Emitted, FeatureMap, Numbers};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;

pub(super) struct Elu;

impl FeatureMap for Elu {
    fn name(&self) -> &'static str {
        "elu"
    }

    fn fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Queries and keys as they are.
    fn is_scaled(&self) -> bool {
        false
    }

    fn emit_plain(&self, p: &mut Patch<'_>, x: ValueId, _: &Emitted) -> ValueId {
        let zero = p.scalar_like(x, 0.0);
        let (above, below) = (p.max(x, zero), p.min(x, zero));
        let power = p.exp(below);
        p.add(above, power)
    }

    fn eval_plain(&self, x: &[f64], _: &Numbers) -> Vec<f64> {
        x.iter().map(|x| if *x > 0.0 { x + 1.0 } else { x.exp() }).collect()
    }
}
