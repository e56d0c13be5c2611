//! The window beside the recurrence.

use super::{Linear, SiteWriter};
use crate::attention::lower::HeadOrder;
use crate::attention::lower::window::{self, Factor, Near, Seen};
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::EXACT;
use dijiang_format::recipe::Local;

/// The logit of a head's share of the window at first.
const SHARE: f32 = 3.0;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn near(&mut self, local: Local, valid: Option<ValueId>) -> Near {
        let (ring, sums) = (self.past_ring(local), self.is_joined());
        let site = self.site;
        Near { q: site.q, k: site.k, v: site.v, factor: Factor::of(site), valid, ring, sums }
    }

    pub(super) fn seen(&mut self, near: &Near, local: Local) -> Seen {
        let dims = self.dims(self.site.q);
        window::lower(self.p, self.options.form, near, local, dims)
    }

    /// g · window + (1 - g) · linear, g = sigmoid(mix) per query head; 0 on padding.
    pub(super) fn mixed(
        &mut self,
        linear: &Linear,
        near: &Seen,
        valid: Option<ValueId>,
    ) -> (ValueId, HeadOrder) {
        let heads = self.site.heads;
        let logits = Tensor::from_f32(&[heads], &vec![SHARE; heads as usize]);
        let logits = self.parameter(None, "mix", logits);
        let read = self.in_order(near.read, near.order, linear.order);
        let dtype = self.mixed_in(read);
        let share = self.p.sigmoid(logits);
        let [read, linear_read, share] = [read, linear.read, share].map(|x| self.p.cast(x, dtype));
        let share = match linear.order {
            HeadOrder::HeadMajor => self.p.unsqueeze(share, &[1, 2]),
            HeadOrder::TokenMajor => self.p.unsqueeze(share, &[1]),
        };
        // In f32 in training too, as the two may be much alike.
        let mixed = self.p.within(EXACT, |p| {
            let apart = p.sub(read, linear_read);
            let moved = p.mul(apart, share);
            p.add(linear_read, moved)
        });
        self.without_padding((mixed, linear.order), valid)
    }

    /// What is served mixes in the model's own f16, which the mixture is rounded to next.
    fn mixed_in(&mut self, read: ValueId) -> DType {
        match self.p.dtype(read) {
            DType::F16 if self.options.form.is_served() => DType::F16,
            _ => DType::F32,
        }
    }

    pub(super) fn without_padding(
        &mut self,
        (read, order): (ValueId, HeadOrder),
        valid: Option<ValueId>,
    ) -> (ValueId, HeadOrder) {
        let Some(valid) = valid else { return (read, order) };
        let axes: [i64; 2] = match order {
            HeadOrder::HeadMajor => [1, 3],
            HeadOrder::TokenMajor => [2, 3],
        };
        let tokens = self.p.unsqueeze(valid, &axes);
        let dtype = self.p.dtype(read);
        let tokens = self.p.cast(tokens, dtype);
        (self.p.mul(read, tokens), order)
    }
}
