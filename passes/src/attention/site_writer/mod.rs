//! Writes the attention of a recipe for one site.

use super::lower::window::{Near, Ring, Seen};
use super::lower::{Dims, HeadOrder, Lowered, Recurrence, RecurrentState, bidirectional};
use super::plan::Plan;
use super::rewrite::Options;
use super::site::AttentionSite;
use crate::feature_map::{Role, added};
use crate::ir::graph::ValueId;
use crate::ir::patch::Patch;
use crate::ir::tensor::Tensor;
use dijiang_format::dtype::DType;
use dijiang_format::names::{EXACT, MADE};
use dijiang_format::recipe::{Feed, Local, Readout, Rule};

mod by_position;
mod features;
mod gates;
mod joined;
mod leaving;
mod near;
mod positions;
mod readout;
mod ring;
mod slots;
mod state;

use features::Features;
use gates::Gates;

/// What the recurrence of a site gives.
struct Linear {
    read: ValueId,
    /// The sums over values that it is made of, in the same order: `read` itself where no norm reads them.
    sums: ValueId,
    order: HeadOrder,
    /// What φ took out of the queries.
    taken: Option<ValueId>,
    /// None where there is no order.
    state: Option<RecurrentState>,
}

/// Which tokens there are, f32 `[batch, sequence]`: 1 or 0; all of them where it is none.
#[derive(Clone, Copy)]
struct Tokens {
    /// Those that are no padding, which decay the state.
    valid: Option<ValueId>,
    /// Those that write into it.
    written: Option<ValueId>,
}

/// What a site carries from call to call.
#[derive(Clone, Copy)]
pub(super) struct SiteState {
    recurrent: Option<RecurrentState>,
    ring: Option<(Local, Ring)>,
}

/// What was written of a site.
pub(super) struct Written {
    /// What stands for the site's output.
    pub(super) out: ValueId,
    /// The last that is a weighted sum of values, `[batch, heads, sequence, value_dim]`: `out` where no norm reads it.
    pub(super) weighed: ValueId,
    /// After the last token.
    pub(super) state: Option<SiteState>,
}

/// Writes the patch of one site.
pub(super) struct SiteWriter<'p, 'g, 'o> {
    pub(super) p: &'p mut Patch<'g>,
    pub(super) site: &'o AttentionSite,
    pub(super) plan: Plan,
    pub(super) options: &'o Options<'o>,
    /// What each branch is multiplied by, where that is asked.
    pub(super) factors: Option<Factors>,
}

/// What the branches of a site are multiplied by, f32 scalars.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) linear: ValueId,
    pub(super) window: ValueId,
}

impl SiteWriter<'_, '_, '_> {
    pub(super) fn attention(&mut self) -> Written {
        self.p.set_scope(&format!("{}{MADE}", self.site.name));
        let valid = self.site.mask.padding().map(|mask| self.valid_tokens(mask));
        let Plan { rule, local, .. } = self.plan;
        let leaves = self.options.recipe.feed == Feed::Leaving;
        let leaving = local.filter(|_| leaves).map(|local| (local, self.near(local, valid)));
        let linear = match (rule, self.options.recipe.slots) {
            (Rule::None, _) => None,
            (Rule::Slots, Some(slots)) => Some(self.slots(slots, valid)),
            _ => Some(self.beside(leaving.as_ref(), valid)),
        };
        let near = leaving.or_else(|| local.map(|local| (local, self.near(local, valid))));
        let near = near.map(|(local, near)| self.seen(&near, local));
        let near = near.map(|near| Seen { read: self.multiplied(near.read, |f| f.window), ..near });
        let recurrent = linear.as_ref().and_then(|linear| linear.state);
        let ring = local.zip(near.as_ref().map(|near| near.ring));
        let sums = linear.as_ref().filter(|linear| near.is_none() && linear.sums != linear.read);
        let sums = sums.map(|linear| (linear.sums, linear.order));
        // What is joined is divided first.
        let linear = linear.map(|linear| match self.is_joined() {
            true => linear,
            false => Linear { read: self.multiplied(linear.read, |f| f.linear), ..linear },
        });
        let (read, order) = match (linear, near) {
            (Some(linear), None) => (linear.read, linear.order),
            (Some(linear), Some(near)) if self.is_joined() => self.joined(&linear, &near, valid),
            (Some(linear), Some(near)) => self.mixed(&linear, &near, valid),
            (None, Some(near)) => self.without_padding((near.read, near.order), valid),
            (None, None) => {
                self.p.fail("the recipe has neither a rule nor a window".to_owned());
                (self.site.q, HeadOrder::HeadMajor)
            }
        };
        let dtype = self.p.dtype(self.site.out);
        let narrow = self.p.cast(read, dtype);
        let out = self.in_order(narrow, order, HeadOrder::HeadMajor);
        let weighed = sums.map_or(out, |(sums, order)| self.in_order(sums, order, HeadOrder::HeadMajor));
        let has_state = recurrent.is_some() || ring.is_some();
        Written { out, weighed, state: has_state.then_some(SiteState { recurrent, ring }) }
    }

    /// What the recurrence gives, of all tokens or of those that leave the window.
    fn beside(&mut self, leaving: Option<&(Local, Near)>, valid: Option<ValueId>) -> Linear {
        match leaving {
            Some((local, near)) => self.of_leaving(near, *local),
            None => self.linear(Tokens { valid, written: valid }),
        }
    }

    /// What the recurrence gives.
    fn linear(&mut self, tokens: Tokens) -> Linear {
        let Features { q, mut k, taken } = self.features();
        let causal = self.site.mask.is_causal();
        if let Some(written) = tokens.written.filter(|_| !(causal && self.masks_otherwise())) {
            let written = self.p.unsqueeze(written, &[1, 3]);
            k = self.p.mul(k, written);
        }
        let v = match (self.options.recipe.by_position, self.puts_heads_first()) {
            (Some(positions), _) => self.weighed_values(positions),
            (None, true) => self.site.v,
            (None, false) => self.p.cast(self.site.v, DType::F32),
        };
        let dims = self.dims(q);
        let (sums, state) = match causal {
            true => {
                let lowered = self.recurrence([q, k, v], tokens, dims);
                (lowered.sums, Some(lowered.state))
            }
            false => (bidirectional::lower(self.p, self.options.form, [q, k, v], dims), None),
        };
        let order = sums.order;
        let (read, sums) = match self.options.recipe.readout {
            Readout::Sum if !dims.divides => (sums.num, None),
            Readout::Sum => (self.read_sum(&sums), None),
            Readout::GroupNorm | Readout::RmsNorm => {
                let sums = match self.options.recipe.by_position {
                    Some(positions) => self.weighed_sums(sums, positions),
                    None => sums,
                };
                (self.read_normalised(&sums), Some(sums.num))
            }
        };
        Linear { read, sums: sums.unwrap_or(read), order, taken, state }
    }

    /// What a branch reads, as far as it counts.
    fn multiplied(&mut self, read: ValueId, factor: fn(&Factors) -> ValueId) -> ValueId {
        let Some(factor) = self.factors.as_ref().map(factor) else { return read };
        let dtype = self.p.dtype(read);
        let factor = self.p.cast(factor, dtype);
        self.p.mul(read, factor)
    }

    /// `[batch, heads, sequence, ·]` or `[batch, sequence, heads, ·]` in the other order, if it is not that already.
    fn in_order(&mut self, x: ValueId, from: HeadOrder, to: HeadOrder) -> ValueId {
        if from == to { x } else { self.p.transpose(x, &[0, 2, 1, 3]) }
    }

    pub(super) fn dims(&mut self, q: ValueId) -> Dims {
        Dims {
            heads: self.site.heads as i64,
            kv_heads: self.site.kv_heads as i64,
            features: self.p.known_dim(q, 3) as i64,
            value_dim: self.site.value_dim as i64,
            divides: self.divides(),
        }
    }

    /// Whether padding is taken out elsewhere than of the keys: of the values, or of β.
    fn masks_otherwise(&self) -> bool {
        self.options.form.masks_values() || self.plan.rule == Rule::Delta
    }

    /// Whether features are `[heads, batch, sequence, m]`.
    fn puts_heads_first(&self) -> bool {
        self.options.form.puts_heads_first() && self.plan.rule != Rule::Delta
    }

    /// Whether what is read is divided by φ(q)·z.
    fn divides(&self) -> bool {
        self.options.recipe.readout == Readout::Sum && self.plan.rule == Rule::Linear && !self.is_joined()
    }

    /// Whether what is near and what is far are parts of one sum.
    fn is_joined(&self) -> bool {
        self.plan.rule == Rule::Linear && self.plan.local.is_some()
    }

    fn parameter(&mut self, role: Option<Role>, name: &str, tensor: Tensor) -> ValueId {
        let name = added::name(&self.site.name, role, name);
        let is_same = |other: &&Tensor| (other.dtype(), other.dims()) == (tensor.dtype(), tensor.dims());
        let tensor = self.options.added.and_then(|d| d.get(&name)).filter(is_same).cloned().unwrap_or(tensor);
        self.p.weight(&name, tensor)
    }

    /// 1 for a token and 0 for padding, f32 `[batch, sequence]`: the last columns of the padding mask,
    /// which may or may not cover the past.
    fn valid_tokens(&mut self, mask: ValueId) -> ValueId {
        let p = &mut *self.p;
        let time = p.shape_of(self.site.q, 2, 3);
        let start = p.neg(time);
        let end = p.ints(&[i64::MAX]);
        let recent = p.slice_to(mask, 1, start, end);
        let recent = p.cast(recent, DType::F32);
        // States the dims again, which a slice from a computed bound does not.
        let batch = p.shape_of(self.site.q, 0, 1);
        let shape = p.concat(&[batch, time], 0);
        p.reshape_to(recent, shape)
    }

    /// The causal sums, and the state in and out. Padding neither adds to the state nor decays it.
    fn recurrence(&mut self, [q, k, v]: [ValueId; 3], tokens: Tokens, dims: Dims) -> Lowered {
        let Gates { mut log_decay, mut beta } = self.gates();
        if let Some((valid, log)) = tokens.valid.zip(log_decay) {
            let tokens = self.p.unsqueeze(valid, &[1]);
            log_decay = Some(self.p.mul(log, tokens));
        }
        if let Some((written, all)) = tokens.written.zip(beta) {
            let written = self.p.unsqueeze(written, &[1]);
            beta = Some(self.p.mul(all, written));
        }
        let (valid, state) = (tokens.written, self.past_state(dims));
        let recurrence = Recurrence { q, k, v, valid, log_decay, beta, state, dims };
        let form = self.options.form;
        match self.options.recipe.readout {
            // In f32 in training too: the few numbers of a group may be much alike, and their differences are what is left.
            Readout::GroupNorm => self.p.within(EXACT, |p| form.lower(p, &recurrence)),
            Readout::Sum | Readout::RmsNorm => form.lower(self.p, &recurrence),
        }
    }

    pub(super) fn scaled(&mut self, x: ValueId) -> ValueId {
        self.p.mul_scalar(x, self.site.scale.sqrt())
    }
}
