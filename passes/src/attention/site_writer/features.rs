//! φ of the queries and keys of a site.

use super::SiteWriter;
use crate::feature_map::{self, Emitted, FeatureMap, Owner, Role};
use crate::ir::graph::ValueId;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;

impl SiteWriter<'_, '_, '_> {
    /// φ of queries and keys, each scaled by √scale.
    pub(super) fn features(&mut self) -> (ValueId, ValueId) {
        let spec = &self.options.recipe.map;
        // `rewrite` has checked the recipe.
        let Some(map) = feature_map::find(&spec.kind) else {
            self.p.fail(format!("no feature map is called `{}`", spec.kind));
            return (self.site.q, self.site.k);
        };
        let mut shared = Emitted::new();
        let q = self.features_of(map, Role::Query, &mut shared);
        let k = self.features_of(map, Role::Key, &mut shared);
        (q, k)
    }

    pub(super) fn features_of(&mut self, map: &dyn FeatureMap, role: Role, shared: &mut Emitted) -> ValueId {
        let (x, heads) = match role {
            Role::Query => (self.site.q, self.site.heads),
            Role::Key => (self.site.k, self.site.kv_heads),
        };
        let spec = &self.options.recipe.map;
        let mut random = Random::named(self.options.seed, &format!("layer.{}", self.site.layer));
        let initial = map.initial(spec, heads as usize, self.site.head_dim as usize, &mut random);
        let dtype = self.feature_type(map);
        let mut emitted = shared.clone();
        for (parameter, tensor) in map.parameters().iter().zip(initial) {
            if emitted.contains_key(parameter.name) {
                continue;
            }
            let value = self.parameter(parameter.role(role), parameter.name, tensor);
            let value = self.p.cast(value, dtype);
            emitted.insert(parameter.name, value);
            if parameter.owner == Owner::Everyone {
                shared.insert(parameter.name, value);
            }
        }
        let x = self.p.cast(x, dtype);
        if self.puts_heads_first() {
            return self.features_by_head(map, role, x, &emitted);
        }
        let scaled = if map.is_scaled() { self.scaled(x) } else { x };
        self.emit(map, scaled, &emitted, role)
    }

    /// φ, of length one where the recipe says so.
    pub(super) fn emit(
        &mut self,
        map: &dyn FeatureMap,
        x: ValueId,
        emitted: &Emitted,
        role: Role,
    ) -> ValueId {
        let features = map.emit(self.p, x, emitted, role);
        match self.options.recipe.map.unit {
            true => feature_map::emit_unit(self.p, features),
            false => features,
        }
    }

    /// `[batch, heads, sequence, head_dim]` → `[heads, batch, sequence, m]`: weights per head multiply the rows of all.
    pub(super) fn features_by_head(
        &mut self,
        map: &dyn FeatureMap,
        role: Role,
        x: ValueId,
        emitted: &Emitted,
    ) -> ValueId {
        let (batch, heads, time) =
            (self.p.shape_of(x, 0, 1), self.p.shape_of(x, 1, 2), self.p.shape_of(x, 2, 3));
        let transposed = self.p.transpose(x, &[1, 0, 2, 3]);
        let rows = self.p.reshape(transposed, &[0, -1, self.site.head_dim as i64]);
        let scaled = if map.is_scaled() { self.scaled(rows) } else { rows };
        let features = self.emit(map, scaled, emitted, role);
        let last = self.p.shape_of(features, 2, 3);
        let shape = self.p.concat(&[heads, batch, time, last], 0);
        self.p.reshape_to(features, shape)
    }

    /// f32, but where a form and the features allow for less, that of the model. Sums must then be free to scale.
    pub(super) fn feature_type(&mut self, map: &dyn FeatureMap) -> DType {
        let own = self.p.dtype(self.site.q);
        let scales = map.sums_to_one() && self.divides();
        match self.puts_heads_first() && scales && own == DType::F16 {
            true => own,
            false => DType::F32,
        }
    }
}
