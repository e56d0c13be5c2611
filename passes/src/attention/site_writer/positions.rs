//! The positions of tokens, and what turns by them.

use super::SiteWriter;
use crate::feature_map::FeatureMap;
use crate::ir::graph::ValueId;
use dijiang_format::dtype::DType;
use dijiang_format::names::POSITIONS;
use std::f64::consts::FRAC_PI_2;

impl SiteWriter<'_, '_, '_> {
    /// The position of each token, i64 `[batch, sequence]`.
    pub(super) fn places(&mut self) -> Option<ValueId> {
        let places = self.p.graph().input(POSITIONS);
        if places.is_none() {
            self.p.fail(format!("the recipe reads the input `{POSITIONS}`, which the graph lacks"));
        }
        places.map(|places| self.p.cast(places, DType::I64))
    }

    /// `[φ sin(πi/2M), φ cos(πi/2M)]` of features that are turned by position, and others as they are.
    pub(super) fn turned(&mut self, map: &dyn FeatureMap, features: ValueId) -> ValueId {
        let Some(positions) = self.options.recipe.map.positions.filter(|_| map.is_turned()) else {
            return features;
        };
        let Some(places) = self.places() else { return features };
        let axes = if self.puts_heads_first() { [0, 3] } else { [1, 3] };
        let p = &mut *self.p;
        let numbers = p.cast(places, DType::F32);
        let numbers = p.add_scalar(numbers, 1.0);
        let angles = p.mul_scalar(numbers, FRAC_PI_2 / positions as f64);
        let angles = p.unsqueeze(angles, &axes);
        let turns = [p.sin(angles), p.cos(angles)];
        let parts = turns.map(|turn| p.mul(features, turn));
        p.concat(&parts, -1)
    }
}
