//! The states of a site, as inputs and outputs of the graph.

use super::{SiteState, SiteWriter};
use crate::attention::lower::window::Ring;
use crate::attention::lower::{Dims, RecurrentState};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;
use dijiang_format::names::StatePart;
use dijiang_format::recipe::Local;

/// Numbers of a ring's state that hold its count, and what the first of them counts.
const COUNT: i64 = 2;
const BASE: f64 = 128.0;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn past_state(&mut self, dims: Dims) -> RecurrentState {
        let (heads, features, width) = (self.site.kv_heads, dims.features as u64, self.site.value_dim);
        RecurrentState {
            s: self.past(StatePart::Sums, DType::F32, &[heads, features, width]),
            z: dims.divides.then(|| self.past(StatePart::Normalizer, DType::F32, &[heads, features])),
        }
    }

    fn past(&mut self, part: StatePart, dtype: DType, rest: &[u64]) -> ValueId {
        let batch = self.p.dim(self.site.q, 0);
        let shape: Vec<Dim> = std::iter::once(batch).chain(rest.iter().copied().map(Dim::Known)).collect();
        self.p.input(&part.past(self.site.layer), dtype, shape)
    }

    pub(in crate::attention) fn drop_cache(&mut self) {
        if let Some(cache) = &self.site.cache {
            self.p.drop_output(&cache.present_key);
            self.p.drop_output(&cache.present_value);
        }
    }

    pub(in crate::attention) fn output_state(&mut self, state: SiteState) {
        let SiteState { recurrent, ring } = state;
        // onnxruntime-genai wants a state of this name, of three axes.
        let second = match (ring, recurrent.and_then(|state| state.z)) {
            (Some(ring), _) => self.packed(ring),
            (None, Some(z)) => z,
            (None, None) => self.past(StatePart::Normalizer, DType::F32, &[1, 1]),
        };
        let sums = recurrent.map(|state| (StatePart::Sums, state.s));
        for (part, value) in sums.into_iter().chain([(StatePart::Normalizer, second)]) {
            self.p.output(&part.present(self.site.layer), value);
        }
    }

    /// The ring as the graph is given it: `[batch, kv_heads, slots · (head_dim + value_dim) + 2]`, the keys, the values, and
    /// the count in two parts, which are small enough for half precision.
    pub(super) fn past_ring(&mut self, local: Local) -> Ring {
        let (slots, width) = (local.slots() as i64, self.ring_width(local) as i64);
        let (heads, site) = (self.site.kv_heads, self.site);
        let (keys_end, values_end) = (slots * site.head_dim as i64, width - COUNT);
        let dtype = self.p.dtype(site.k);
        let state = self.past(StatePart::Normalizer, dtype, &[heads, width as u64]);
        // All rings of a graph count the same tokens.
        let counted = self.first_ring(width as u64).unwrap_or(state);
        let p = &mut *self.p;
        let parts = [(0, keys_end, site.head_dim), (keys_end, values_end, site.value_dim)];
        let [keys, values] = parts.map(|(start, end, dim)| {
            let part = p.slice(state, 2, start, end);
            p.reshape(part, &[0, heads as i64, slots, dim as i64])
        });
        let one = p.slice(counted, 1, 0, 1);
        let count = p.slice(one, 2, width - COUNT, width);
        let count = p.cast(count, DType::F32);
        let parts = p.split(count, 2, &[1, 1]);
        let high = p.mul_scalar(parts[0], BASE);
        let count = p.add(high, parts[1]);
        Ring { keys, values, count: p.squeeze(count, &[2]) }
    }

    fn ring_width(&self, local: Local) -> u64 {
        local.slots() * (self.site.head_dim + self.site.value_dim) + COUNT as u64
    }

    /// The ring of a layer that was written before, of the same width.
    fn first_ring(&self, width: u64) -> Option<ValueId> {
        let graph = self.p.graph();
        let is_ring = |input: &ValueId| {
            let value = graph.value(*input);
            let last = value.ty.shape.as_ref().and_then(|shape| shape.get(2)?.known());
            StatePart::Normalizer.is_past(&value.name) && last == Some(width)
        };
        graph.inputs().iter().copied().find(is_ring)
    }

    fn packed(&mut self, ring: Ring) -> ValueId {
        let heads = self.site.kv_heads as i64;
        let p = &mut *self.p;
        let dtype = p.dtype(ring.keys);
        let base = p.scalar_like(ring.count, BASE);
        let high = p.div(ring.count, base);
        let high = p.node(Op::new("Floor"), &[high]);
        let whole = p.mul(high, base);
        let low = p.sub(ring.count, whole);
        let count = p.concat(&[high, low], 1);
        let count = p.cast(count, dtype);
        let count = p.unsqueeze(count, &[1]);
        let lead = p.shape_of(ring.keys, 0, 2);
        let last = p.ints(&[COUNT]);
        let shape = p.concat(&[lead, last], 0);
        let count = p.expand(count, shape);
        let [keys, values] = [ring.keys, ring.values].map(|x| p.reshape(x, &[0, heads, -1]));
        p.concat(&[keys, values, count], 2)
    }
}
