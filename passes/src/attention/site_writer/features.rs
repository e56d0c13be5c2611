//! φ of the queries and keys of a site.

use super::SiteWriter;
use crate::attention::lower::Form;
use crate::feature_map::{self, Emitted, FeatureMap, Owner, ParameterSpec, Role};
use crate::ir::graph::ValueId;
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;

/// φ of queries and keys.
pub(super) struct Features {
    pub(super) q: ValueId,
    pub(super) k: ValueId,
    /// The logarithm of what φ took out of each query, f32 `[batch, heads, sequence, 1]`, where it took something out and
    /// what is near is part of the same sum.
    pub(super) taken: Option<ValueId>,
}

impl SiteWriter<'_, '_, '_> {
    /// φ of queries and keys, each scaled by √scale.
    pub(super) fn features(&mut self) -> Features {
        let spec = &self.options.recipe.map;
        // `rewrite` has checked the recipe.
        let Some(map) = feature_map::find(&spec.kind) else {
            self.p.fail(format!("no feature map is called `{}`", spec.kind));
            return Features { q: self.site.q, k: self.site.k, taken: None };
        };
        let mut shared = Emitted::new();
        let stored = [Role::Query, Role::Key].map(|role| self.emitted(map, role, &mut shared));
        if self.joins_heads(map) {
            return self.features_of_all(map, stored);
        }
        let q = self.features_of(map, Role::Query, &stored[0]);
        let k = self.features_of(map, Role::Key, &stored[1]);
        Features { q, k, taken: self.taken_out(map, &stored[0]) }
    }

    fn taken_out(&mut self, map: &dyn FeatureMap, stored: &Emitted) -> Option<ValueId> {
        if !self.is_joined() || self.options.recipe.map.unit {
            return None;
        }
        let emitted = self.in_type(map, stored, DType::F32);
        let x = self.p.cast(self.site.q, DType::F32);
        let x = if map.is_scaled() { self.scaled(x) } else { x };
        let exponents = map.emit_exponents(self.p, x, &emitted)?;
        Some(self.p.reduce("ReduceMax", exponents, &[-1], true))
    }

    /// Whether queries and keys of a token are too few for two products: φ of a unit map is the same for both. Where no
    /// window reads them too, fusion joins them earlier.
    fn joins_heads(&self, map: &dyn FeatureMap) -> bool {
        matches!(self.options.form, Form::OneToken(_)) && map.is_unit() && self.plan.local.is_some()
    }

    fn features_of_all(&mut self, map: &dyn FeatureMap, [q, k]: [Emitted; 2]) -> Features {
        let dtype = self.feature_type(map);
        let all = map.parameters().iter().map(|parameter| {
            let (q, k) = (q[parameter.name], k[parameter.name]);
            let value = if parameter.owner == Owner::Head { self.p.concat(&[q, k], 0) } else { q };
            (parameter.name, self.p.cast(value, dtype))
        });
        let all: Emitted = all.collect();
        let x = self.p.concat(&[self.site.q, self.site.k], 1);
        let x = self.p.cast(x, dtype);
        let features = self.emit(map, x, &all, Role::Query);
        let parts = self.p.split(features, 1, &[self.site.heads as i64, self.site.kv_heads as i64]);
        Features { q: parts[0], k: parts[1], taken: None }
    }

    fn features_of(&mut self, map: &dyn FeatureMap, role: Role, stored: &Emitted) -> ValueId {
        let x = match role {
            Role::Query => self.site.q,
            Role::Key => self.site.k,
        };
        let dtype = self.feature_type(map);
        let emitted = self.in_type(map, stored, dtype);
        let x = self.p.cast(x, dtype);
        let features = if self.puts_heads_first() {
            self.features_by_head(map, role, x, &emitted)
        } else {
            let scaled = if map.is_scaled() { self.scaled(x) } else { x };
            self.emit(map, scaled, &emitted, role)
        };
        self.turned(map, features)
    }

    /// The parameters in an element type.
    fn in_type(&mut self, map: &dyn FeatureMap, stored: &Emitted, dtype: DType) -> Emitted {
        let cast = |parameter: &ParameterSpec| {
            let value = stored[parameter.name];
            (parameter.name, self.p.cast(value, dtype))
        };
        map.parameters().iter().map(cast).collect()
    }

    /// The parameters as they are stored; those of everyone are written once.
    fn emitted(&mut self, map: &dyn FeatureMap, role: Role, shared: &mut Emitted) -> Emitted {
        let heads = match role {
            Role::Query => self.site.heads,
            Role::Key => self.site.kv_heads,
        };
        let spec = &self.options.recipe.map;
        let mut random = Random::named(self.options.seed, &format!("layer.{}", self.site.layer));
        let initial = map.initial(spec, heads as usize, self.site.head_dim as usize, &mut random);
        let mut emitted = shared.clone();
        for (parameter, tensor) in map.parameters().iter().zip(initial) {
            if emitted.contains_key(parameter.name) {
                continue;
            }
            let value = self.parameter(parameter.role(role), parameter.name, tensor);
            emitted.insert(parameter.name, value);
            if parameter.owner == Owner::Everyone {
                shared.insert(parameter.name, value);
            }
        }
        emitted
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
