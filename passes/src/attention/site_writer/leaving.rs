//! The recurrence of what leaves the window.

use super::{Linear, SiteWriter, Tokens};
use crate::attention::lower::leaving::{self, Leaving};
use crate::attention::lower::window::Near;
use crate::attention::site::AttentionSite;
use crate::ir::graph::ValueId;
use dijiang_format::recipe::Local;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn of_leaving(&mut self, near: &Near, local: Local) -> Linear {
        let dims = self.dims(self.site.q);
        let Leaving { k, mut v, is_one } = leaving::lower(self.p, self.options.form, near, local, dims);
        let mut value_dim = self.site.value_dim;
        if self.is_joined() {
            v = self.counted(v);
            value_dim += 1;
        }
        let site = AttentionSite { k, v, value_dim, ..self.site.clone() };
        let (plan, options) = (self.plan, self.options);
        let tokens = Tokens { valid: near.valid, written: Some(is_one) };
        SiteWriter { p: &mut *self.p, site: &site, plan, options, factors: None }.linear(tokens)
    }

    /// Values with a 1 behind each, whose sum is what the others are divided by.
    fn counted(&mut self, v: ValueId) -> ValueId {
        let p = &mut *self.p;
        let one = p.scalar_like(v, 1.0);
        let (lead, last) = (p.shape_of(v, 0, 3), p.ints(&[1]));
        let shape = p.concat(&[lead, last], 0);
        let ones = p.expand(one, shape);
        p.concat(&[v, ones], 3)
    }
}
