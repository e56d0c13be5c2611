//! The last keys and values of a site, as states of the graph ([`dijiang_format::ring`]).

use super::SiteWriter;
use crate::attention::lower::Form;
use crate::attention::lower::window::{Kept, Ring};
use crate::ir::graph::ValueId;
use crate::ir::op::Op;
use dijiang_format::dtype::DType;
use dijiang_format::names::{StatePart, present_of};
use dijiang_format::recipe::Local;
use dijiang_format::ring::{BASE, COUNT, count_name, keys_name, values_name};

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
        let (head_dim, value_dim) = (self.site.head_dim, self.site.value_dim);
        let [keys, values] = self.names_of_parts(local);
        let keys = self.past_named(&keys, dtype, &[heads, slots, head_dim]);
        let values = self.past_named(&values, dtype, &[heads, slots, value_dim]);
        let name = count_name(local);
        let count = self.p.graph().input(&name).unwrap_or_else(|| self.past_named(&name, DType::F32, &[1]));
        Ring { kept: Kept::Apart([keys, values]), count }
    }

    fn names_of_parts(&self, local: Local) -> [String; 2] {
        let layer = self.site.layer;
        [keys_name(layer, local), values_name(layer, local)]
    }

    pub(super) fn output_parts(&mut self, ring: Ring, local: Local) {
        let [keys, values] = self.names_of_parts(local);
        let kept = ring.kept.apart(self.p, self.site.kv_heads as i64);
        for (past, value) in [(keys, kept[0]), (values, kept[1]), (count_name(local), ring.count)] {
            let present = present_of(&past).filter(|present| self.p.graph().output(present).is_none());
            if let Some(present) = present {
                self.p.output(&present, value);
            }
        }
    }

    fn past_packed(&mut self, local: Local) -> Ring {
        let (slots, width) = (local.slots() as i64, self.ring_width(local) as i64);
        let (heads, site) = (self.site.kv_heads, self.site);
        let (keys_end, values_end) = (slots * site.head_dim as i64, width - COUNT as i64);
        let dtype = self.p.dtype(site.k);
        let state = self.past(StatePart::Normalizer, dtype, &[heads, width as u64]);
        let (counted, counts_end) = self.counted_in().unwrap_or((state, width));
        let stacks = self.stacks_rings();
        let p = &mut *self.p;
        let mut part = |start: i64, end: i64, heads: u64, dim: u64| {
            let part = p.slice(state, 2, start, end);
            p.reshape(part, &[0, heads as i64, slots, dim as i64])
        };
        let kept = match stacks {
            true => Kept::Stacked(part(0, values_end, 2 * heads, site.head_dim)),
            false => Kept::Apart([
                part(0, keys_end, heads, site.head_dim),
                part(keys_end, values_end, heads, site.value_dim),
            ]),
        };
        let one = p.slice(counted, 1, 0, 1);
        let count = p.slice(one, 2, counts_end - COUNT as i64, counts_end);
        let count = p.cast(count, DType::F32);
        let parts = p.split(count, 2, &[1, 1]);
        let high = p.mul_scalar(parts[0], f64::from(BASE));
        let count = p.add(high, parts[1]);
        Ring { kept, count: p.squeeze(count, &[2]) }
    }

    /// Where few tokens at a time make many small operators.
    fn stacks_rings(&self) -> bool {
        matches!(self.options.form, Form::Operator(_)) && self.site.head_dim == self.site.value_dim
    }

    fn ring_width(&self, local: Local) -> u64 {
        local.slots() * (self.site.head_dim + self.site.value_dim) + COUNT as u64
    }

    /// The state that counts for all rings that see the same, and its width.
    fn counted_in(&self) -> Option<(ValueId, i64)> {
        let graph = self.p.graph();
        let state = graph.input(&StatePart::Normalizer.past(self.plan.counter))?;
        let width = graph.value(state).ty.shape.as_ref()?.get(2)?.known()?;
        Some((state, width as i64))
    }

    pub(super) fn packed(&mut self, ring: Ring) -> ValueId {
        let heads = self.site.kv_heads as i64;
        let p = &mut *self.p;
        let kept = match ring.kept {
            Kept::Apart(both) => both.to_vec(),
            Kept::Stacked(both) => vec![both],
        };
        let dtype = p.dtype(kept[0]);
        let base = p.scalar_like(ring.count, f64::from(BASE));
        let high = p.div(ring.count, base);
        let high = p.node(Op::new("Floor"), &[high]);
        let whole = p.mul(high, base);
        let low = p.sub(ring.count, whole);
        let count = p.concat(&[high, low], 1);
        let count = p.cast(count, dtype);
        let count = p.unsqueeze(count, &[1]);
        let lead = p.shape_of(kept[0], 0, 1);
        let last = p.ints(&[heads, COUNT as i64]);
        let shape = p.concat(&[lead, last], 0);
        let count = p.expand(count, shape);
        let mut parts: Vec<ValueId> = kept.iter().map(|&x| p.reshape(x, &[0, heads, -1])).collect();
        parts.push(count);
        p.concat(&parts, 2)
    }
}
