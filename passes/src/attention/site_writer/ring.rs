//! The last keys and values of a site, as states of the graph ([`dijiang_format::ring`]).

use super::SiteWriter;
use crate::attention::lower::window::Ring;
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;
use dijiang_format::names::{StatePart, present_of};
use dijiang_format::recipe::Local;
use dijiang_format::ring::{BASE, COUNT, count_name};

impl SiteWriter<'_, '_, '_> {
    /// The ring as the graph is given it.
    pub(super) fn past_ring(&mut self, local: Local) -> Ring {
        match self.options.form.splits_rings() {
            true => self.past_parts(local),
            false => self.past_packed(local),
        }
    }

    fn past_parts(&mut self, local: Local) -> Ring {
        let (slots, heads, dtype) = (local.slots(), self.site.kv_heads, self.p.dtype(self.site.k));
        let widths =
            [(StatePart::RingKeys, self.site.head_dim), (StatePart::RingValues, self.site.value_dim)];
        let [keys, values] = widths.map(|(part, width)| self.past(part, dtype, &[heads, slots, width]));
        let name = count_name(local);
        let count = self.p.graph().input(&name).unwrap_or_else(|| {
            let batch = self.p.dim(self.site.q, 0);
            self.p.input(&name, DType::F32, vec![batch, Dim::Known(1)])
        });
        Ring { keys, values, count }
    }

    pub(super) fn output_parts(&mut self, ring: Ring, local: Local) {
        let layer = self.site.layer;
        self.p.output(&StatePart::RingKeys.present(layer), ring.keys);
        self.p.output(&StatePart::RingValues.present(layer), ring.values);
        let Some(count) = present_of(&count_name(local)) else { return };
        if self.p.graph().output(&count).is_none() {
            self.p.output(&count, ring.count);
        }
    }

    fn past_packed(&mut self, local: Local) -> Ring {
        let (slots, width) = (local.slots() as i64, self.ring_width(local) as i64);
        let (heads, site) = (self.site.kv_heads, self.site);
        let (keys_end, values_end) = (slots * site.head_dim as i64, width - COUNT as i64);
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
        let count = p.slice(one, 2, width - COUNT as i64, width);
        let count = p.cast(count, DType::F32);
        let parts = p.split(count, 2, &[1, 1]);
        let high = p.mul_scalar(parts[0], f64::from(BASE));
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

    pub(super) fn packed(&mut self, ring: Ring) -> ValueId {
        let heads = self.site.kv_heads as i64;
        let p = &mut *self.p;
        let dtype = p.dtype(ring.keys);
        let base = p.scalar_like(ring.count, f64::from(BASE));
        let high = p.div(ring.count, base);
        let high = p.node(Op::new("Floor"), &[high]);
        let whole = p.mul(high, base);
        let low = p.sub(ring.count, whole);
        let count = p.concat(&[high, low], 1);
        let count = p.cast(count, dtype);
        let count = p.unsqueeze(count, &[1]);
        let lead = p.shape_of(ring.keys, 0, 2);
        let last = p.ints(&[COUNT as i64]);
        let shape = p.concat(&[lead, last], 0);
        let count = p.expand(count, shape);
        let [keys, values] = [ring.keys, ring.values].map(|x| p.reshape(x, &[0, heads, -1]));
        p.concat(&[keys, values, count], 2)
    }
}
