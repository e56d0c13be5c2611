//! One normalisation of what is near and what is far.
//!
//! With w = log Σ_near exp(s q·k), l = b + c + log φ(q)·z, c what φ took out of the query and b learned per query head:
//! (e^w · window + e^l · linear) / (e^w + e^l) = linear + sigmoid(w - l) · (window - linear), which no exponent is too large
//! for.

use super::{Linear, SiteWriter};
use crate::attention::lower::HeadOrder;
use crate::attention::lower::window::Seen;
use crate::ir::graph::ValueId;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;

/// Added to φ(q)·z, which is 0 until something has left the window.
const LEAST: f64 = 1e-30;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn joined(
        &mut self,
        linear: &Linear,
        near: &Seen,
        valid: Option<ValueId>,
    ) -> (ValueId, HeadOrder) {
        let order = linear.order;
        let parts = self.p.split(linear.read, 3, &[self.site.value_dim as i64, 1]);
        let sum = self.p.add_scalar(parts[1], LEAST);
        let far = self.p.div(parts[0], sum);
        let far = self.multiplied(far, |f| f.linear);
        let log = self.log_of_far(linear, sum);
        let share = self.share_of_near(near, log, order);
        let read = self.in_order(near.read, near.order, order);
        let [read, far, share] = [read, far, share].map(|x| self.p.cast(x, DType::F32));
        let apart = self.p.sub(read, far);
        let moved = self.p.mul(apart, share);
        let mixed = self.p.add(far, moved);
        self.without_padding((mixed, order), valid)
    }

    /// sigmoid(w - l).
    fn share_of_near(&mut self, near: &Seen, far_log: ValueId, order: HeadOrder) -> ValueId {
        let Some(near_log) = near.log_sum else {
            self.p.fail("the sum of the window was not computed".to_owned());
            return near.read;
        };
        let near_log = self.in_order(near_log, near.order, order);
        let apart = self.p.sub(near_log, far_log);
        self.p.sigmoid(apart)
    }

    /// l, f32 in the order of what the recurrence read.
    fn log_of_far(&mut self, linear: &Linear, sum: ValueId) -> ValueId {
        let heads = self.site.heads;
        let far = self.parameter(None, "far", Tensor::from_f32(&[heads], &vec![0.0; heads as usize]));
        let far = match linear.order {
            HeadOrder::HeadMajor => self.p.unsqueeze(far, &[1, 2]),
            HeadOrder::TokenMajor => self.p.unsqueeze(far, &[1]),
        };
        let log = self.p.log(sum);
        let log = self.p.add(log, far);
        let Some(taken) = linear.taken else { return log };
        let taken = self.in_order(taken, HeadOrder::HeadMajor, linear.order);
        self.p.add(log, taken)
    }
}
