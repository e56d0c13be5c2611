//! The attention of [`testing::decoder`] by its definition, token by token in f64: what the lowerings are compared with. It
//! shares nothing with them but the parameters.

use crate::feature_map::{self, Numbers, Owner, Role};
use crate::ir::eval::Array;
use crate::ir::graph::Graph;
use crate::testing::{self, HEAD_DIM, HEADS, HIDDEN, KV_HEADS};
use dijiang_format::recipe::{Decay, Feed, Local, Readout, Recipe, Rule};
use std::collections::BTreeMap;

/// The module of the layer.
const MODULE: &str = "h.0.attn";

/// A recipe, the parameters it added to a graph, and tokens.
pub(super) struct Layer<'a> {
    recipe: &'a Recipe,
    graph: &'a Graph,
    hidden: Vec<f64>,
    mask: Vec<f64>,
    positions: Vec<f64>,
    pub(super) time: usize,
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl<'a> Layer<'a> {
    pub(super) fn new(recipe: &'a Recipe, graph: &'a Graph, given: &[(&'static str, Array)]) -> Self {
        let by_name: BTreeMap<&str, &Array> = given.iter().map(|(name, array)| (*name, array)).collect();
        let time = by_name["hidden"].shape()[1];
        let [hidden, mask] = ["hidden", "attention_mask"].map(|name| by_name[name].to_f64());
        let positions = by_name.get("position_ids").map(|places| places.to_f64()).unwrap_or_default();
        Self { recipe, graph, hidden, mask, positions, time }
    }

    /// The key/value head of a query head.
    pub(super) fn shared(head: usize) -> usize {
        head / (HEADS / KV_HEADS) as usize
    }

    pub(super) fn is_token(&self, row: usize, at: usize) -> bool {
        self.mask[row * self.time + at] == 1.0
    }

    fn token(&self, row: usize, at: usize) -> &[f64] {
        let width = HIDDEN as usize;
        &self.hidden[(row * self.time + at) * width..][..width]
    }

    fn weight(graph: &Graph, name: &str) -> Vec<f64> {
        let value = graph.find_value(name).and_then(|value| graph.as_const(value));
        value.unwrap_or_else(|| panic!("a weight {name}")).to_f64()
    }

    fn projected(name: &str, head: usize, x: &[f64]) -> Vec<f64> {
        let weight = Self::weight(&testing::decoder(), &format!("{MODULE}.{name}.weight"));
        let rows = weight.chunks(x.len()).skip(head * HEAD_DIM as usize).take(HEAD_DIM as usize);
        rows.map(|row| dot(row, x)).collect()
    }

    fn numbers(&self, role: Role, head: usize) -> Numbers {
        let map = feature_map::find(&self.recipe.map.kind).expect("a map");
        let heads = if role == Role::Query { HEADS } else { KV_HEADS } as usize;
        let parameters = map.parameters().iter().map(|spec| {
            let all = Self::weight(self.graph, &feature_map::added::name(MODULE, spec.role(role), spec.name));
            let each = all.len() / heads;
            match spec.owner {
                Owner::Everyone => (spec.name, all),
                Owner::Head => (spec.name, all[head * each..(head + 1) * each].to_vec()),
            }
        });
        parameters.collect()
    }

    /// The features of a token, turned where the map says so.
    fn turned(&self, features: Vec<f64>, row: usize, at: usize) -> Vec<f64> {
        let map = feature_map::find(&self.recipe.map.kind).expect("a map");
        let Some(positions) = self.recipe.map.positions.filter(|_| map.is_turned()) else { return features };
        feature_map::eval_turned(&features, self.positions[row * self.time + at] as usize, positions)
    }

    fn phi(&self, x: &[f64], role: Role, head: usize) -> Vec<f64> {
        let map = feature_map::find(&self.recipe.map.kind).expect("a map");
        let root = if map.is_scaled() { (HEAD_DIM as f64).powf(-0.25) } else { 1.0 };
        let scaled: Vec<f64> = x.iter().map(|x| x * root).collect();
        let features = map.eval(&scaled, &self.numbers(role, head), role);
        if self.recipe.map.unit { feature_map::eval_unit(&features) } else { features }
    }

    /// φ(q).
    pub(super) fn query(&self, row: usize, at: usize, head: usize) -> Vec<f64> {
        let features = self.phi(&Self::projected("q_proj", head, self.token(row, at)), Role::Query, head);
        self.turned(features, row, at)
    }

    /// φ(k).
    pub(super) fn key(&self, row: usize, at: usize, head: usize) -> Vec<f64> {
        let features = self.phi(&Self::projected("k_proj", head, self.token(row, at)), Role::Key, head);
        self.turned(features, row, at)
    }

    pub(super) fn value(&self, row: usize, at: usize, head: usize) -> Vec<f64> {
        Self::projected("v_proj", head, self.token(row, at))
    }

    /// Sums over φ(k) ⊗ v, normalised and gated by SiLU(W_g x), where nothing is padding.
    pub(super) fn normalised(&self) -> Vec<f64> {
        let weight = Self::weight(self.graph, &format!("{MODULE}.dijiang.readout.weight"));
        let rows: Vec<&[f64]> = weight.chunks(HIDDEN as usize).collect();
        let mut out = Vec::new();
        for (row, at) in (0..2).flat_map(|row| (0..self.time).map(move |at| (row, at))) {
            let merged: Vec<f64> = (0..HEADS as usize).flat_map(|head| self.summed(row, at, head)).collect();
            let gates = rows.iter().map(|w| dot(w, self.token(row, at)));
            let normal = self.normal(&merged);
            out.extend(normal.iter().zip(gates).map(|(x, gate)| x * gate / (1.0 + (-gate).exp())));
        }
        out
    }

    /// Σ_{j≤i} φ(q_i)·φ(k_j) Π_{j<t≤i} a_t v_j.
    fn summed(&self, row: usize, at: usize, head: usize) -> Vec<f64> {
        let (q, shared) = (self.query(row, at, head), Self::shared(head));
        let mut sum = vec![0.0; HEAD_DIM as usize];
        for j in 0..=at {
            let decay: f64 = (j + 1..=at).map(|t| self.decay(row, t, shared)).product();
            let by_position = self.by_position("sums", at, head) * self.by_position("values", j, shared);
            let weight = by_position * decay * dot(&q, &self.key(row, j, shared));
            sum.iter_mut().zip(self.value(row, j, shared)).for_each(|(s, v)| *s += weight * v);
        }
        sum
    }

    /// Softmax over slots, `[2, time, heads, head_dim]`.
    pub(super) fn slotted(&self, count: usize) -> Vec<f64> {
        let [e, f] = ["keys", "values"]
            .map(|name| Self::weight(self.graph, &format!("{MODULE}.dijiang.slots.{name}")));
        let mut out = Vec::new();
        for (row, at) in (0..2).flat_map(|row| (0..self.time).map(move |at| (row, at))) {
            for head in 0..HEADS as usize {
                let (q, shared) = (self.query(row, at, head), Self::shared(head));
                let (mut scores, mut values) = (vec![0.0; count], vec![vec![0.0; HEAD_DIM as usize]; count]);
                for j in (0..=at).filter(|j| self.is_token(row, *j)) {
                    let place = self.positions[row * self.time + j] as usize * KV_HEADS as usize + shared;
                    let (score, v) = (dot(&q, &self.key(row, j, shared)), self.value(row, j, shared));
                    for slot in 0..count {
                        scores[slot] += score * e[place * count + slot];
                        let weight = f[place * count + slot];
                        values[slot].iter_mut().zip(&v).for_each(|(sum, v)| *sum += weight * v);
                    }
                }
                let powers: Vec<f64> = scores.iter().map(|score| score.exp()).collect();
                let total: f64 = powers.iter().sum();
                out.extend((0..HEAD_DIM as usize).map(|i| {
                    powers.iter().zip(&values).map(|(power, value)| power / total * value[i]).sum::<f64>()
                }));
            }
        }
        out
    }

    /// The weight of a position, where each has one.
    fn by_position(&self, name: &str, at: usize, head: usize) -> f64 {
        let Some(positions) = self.recipe.by_position else { return 1.0 };
        let table = Self::weight(self.graph, &format!("{MODULE}.dijiang.positions.{name}"));
        let row = at.min(positions as usize - 1);
        table[row * (table.len() / positions as usize) + head]
    }

    /// Of the channels of all heads.
    fn normal(&self, merged: &[f64]) -> Vec<f64> {
        if self.recipe.readout != Readout::GroupNorm {
            return merged
                .chunks(HEAD_DIM as usize)
                .flat_map(|head| Self::normal_of(head, 0.0, 1e-6))
                .collect();
        }
        let of_groups = merged.chunks(HEADS as usize).flat_map(|group| {
            let mean = group.iter().sum::<f64>() / group.len() as f64;
            Self::normal_of(group, mean, 1e-5)
        });
        let [weight, bias] =
            ["weight", "bias"].map(|name| Self::weight(self.graph, &format!("{MODULE}.dijiang.norm.{name}")));
        of_groups.zip(weight.iter().zip(bias)).map(|(x, (weight, bias))| x * weight + bias).collect()
    }

    fn normal_of(x: &[f64], mean: f64, epsilon: f64) -> Vec<f64> {
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter().map(|x| (x - mean) / (variance + epsilon).sqrt()).collect()
    }

    /// sigmoid(w·x + b) of a gate.
    fn gate(&self, name: &str, x: &[f64], head: usize) -> f64 {
        let part = |part: &str| Self::weight(self.graph, &format!("{MODULE}.dijiang.{name}.{part}"));
        let logit = dot(&part("weight")[head * x.len()..][..x.len()], x) + part("bias")[head];
        1.0 / (1.0 + (-logit).exp())
    }

    /// a_t.
    fn decay(&self, row: usize, at: usize, head: usize) -> f64 {
        match self.recipe.decay {
            Decay::None => 1.0,
            Decay::Fixed => 1.0 - (-5.0 - head as f64).exp2(),
            Decay::Released => {
                let (first, last) = ((1.0 / 32.0f64).ln(), (1.0 / 512.0f64).ln());
                let spaced = first + (last - first) * head as f64 / (KV_HEADS - 1) as f64;
                1.0 - spaced.exp()
            }
            Decay::Learned => self.gate("gate", self.token(row, at), head),
        }
    }

    /// Under the delta rule: what each head reads of each token, `[2, time, heads, head_dim]`, and the states after the
    /// last, `[2, kv_heads, m, head_dim]`.
    pub(super) fn delta(&self) -> (Vec<f64>, Vec<f64>) {
        let mut out = Vec::new();
        let mut states = Vec::new();
        for row in 0..2 {
            let heads: Vec<_> = (0..KV_HEADS as usize).map(|head| self.delta_states(row, head)).collect();
            for (at, head) in (0..self.time).flat_map(|at| (0..HEADS as usize).map(move |head| (at, head))) {
                let (q, state) = (self.query(row, at, head), &heads[Self::shared(head)][at]);
                out.extend((0..HEAD_DIM as usize).map(|j| dot(&q, &state[j])));
            }
            for state in heads.iter().filter_map(|states| states.last()) {
                states.extend((0..state[0].len()).flat_map(|i| state.iter().map(move |column| column[i])));
            }
        }
        (out, states)
    }

    /// The columns of S after each token.
    fn delta_states(&self, row: usize, head: usize) -> Vec<Vec<Vec<f64>>> {
        let m = self.key(row, 0, head).len();
        let mut state = vec![vec![0.0; m]; HEAD_DIM as usize];
        let after = |at: usize| {
            if self.is_token(row, at) {
                let (a, beta) = (self.decay(row, at, head), self.gate("beta", self.token(row, at), head));
                state.iter_mut().flatten().for_each(|s| *s *= a);
                let Some(from) = self.written_with(row, at) else { return state.clone() };
                let (k, v) = (self.key(row, from, head), self.value(row, from, head));
                for (column, v) in state.iter_mut().zip(v) {
                    let written = beta * (v - dot(column, &k));
                    column.iter_mut().zip(&k).for_each(|(s, k)| *s += k * written);
                }
            }
            state.clone()
        };
        (0..self.time).map(after).collect()
    }

    /// The token that comes into the state with another.
    fn written_with(&self, row: usize, at: usize) -> Option<usize> {
        let Some(local) = self.recipe.local.filter(|_| self.recipe.feed == Feed::Leaving) else {
            return Some(at);
        };
        let counts = self.counts(row);
        let count = counts[at].checked_sub(local.window as usize)?;
        let is_it = |j: &usize| self.is_token(row, *j) && counts[*j] == count;
        (0..at).find(is_it).filter(|_| count > local.sinks as usize)
    }

    /// Counts of tokens up to each, itself included.
    fn counts(&self, row: usize) -> Vec<usize> {
        let mut count = 0;
        let counted = |at| {
            count += usize::from(self.is_token(row, at));
            count
        };
        (0..self.time).map(counted).collect()
    }

    /// Softmax over the tokens that are visible to one, and zeros for padding, `[2, time, heads, head_dim]`.
    pub(super) fn near(&self, local: Local) -> Vec<f64> {
        let (window, sinks) = (local.window as usize, local.sinks as usize);
        let mut out = Vec::new();
        for row in 0..2 {
            let counts = self.counts(row);
            for (at, head) in (0..self.time).flat_map(|at| (0..HEADS as usize).map(move |head| (at, head))) {
                let sees = |j: &usize| {
                    self.is_token(row, *j) && (counts[at] - counts[*j] < window || counts[*j] <= sinks)
                };
                let seen: Vec<usize> = (0..=at).filter(sees).filter(|_| self.is_token(row, at)).collect();
                out.extend(self.softmax_over(row, [at, head], &seen));
            }
        }
        out
    }

    fn softmax_over(&self, row: usize, [at, head]: [usize; 2], seen: &[usize]) -> Vec<f64> {
        let weights = seen.iter().map(|j| (*j, self.near_weight(row, [at, *j], head)));
        self.averaged(row, head, &weights.collect::<Vec<_>>())
    }

    /// exp(q·k / √head_dim) of a query and a key.
    fn near_weight(&self, row: usize, [at, j]: [usize; 2], head: usize) -> f64 {
        let q = Self::projected("q_proj", head, self.token(row, at));
        let k = Self::projected("k_proj", Self::shared(head), self.token(row, j));
        (dot(&q, &k) / (HEAD_DIM as f64).sqrt()).exp()
    }

    /// The values of tokens by their weights, which are divided by their sum.
    fn averaged(&self, row: usize, head: usize, weights: &[(usize, f64)]) -> Vec<f64> {
        let (sum, mut out) = (weights.iter().map(|(_, w)| w).sum::<f64>(), vec![0.0; HEAD_DIM as usize]);
        for (j, weight) in weights {
            let value = self.value(row, *j, Self::shared(head));
            out.iter_mut().zip(value).for_each(|(o, v)| *o += weight / sum * v);
        }
        out
    }

    /// What is near and what has left the window in one normalisation; zeros for padding.
    pub(super) fn joined(&self, local: Local) -> Vec<f64> {
        let mut out = Vec::new();
        for row in 0..2 {
            let counts = self.counts(row);
            for (at, head) in (0..self.time).flat_map(|at| (0..HEADS as usize).map(move |head| (at, head))) {
                let earlier = (0..=at).filter(|j| self.is_token(row, *j) && self.is_token(row, at));
                let weight = |j: usize| {
                    let is_near = counts[at] - counts[j] < local.window as usize;
                    match is_near || counts[j] <= local.sinks as usize {
                        true => (j, self.near_weight(row, [at, j], head)),
                        false => (j, self.far_weight(row, [at, j], head)),
                    }
                };
                out.extend(self.averaged(row, head, &earlier.map(weight).collect::<Vec<_>>()));
            }
        }
        out
    }

    /// e^b φ(q)·φ(k) and the decays since the token left the window.
    fn far_weight(&self, row: usize, [at, j]: [usize; 2], head: usize) -> f64 {
        let left = (j..=at).find(|t| self.is_token(row, *t) && self.written_with(row, *t) == Some(j));
        let left = left.expect("it has left the window");
        let since = (left + 1..=at).filter(|t| self.is_token(row, *t));
        let decay: f64 = since.map(|t| self.decay(row, t, Self::shared(head))).product();
        let far = Self::weight(self.graph, &format!("{MODULE}.dijiang.far"))[head];
        let scale = (far + self.taken(row, at, head)).exp();
        scale * decay * dot(&self.query(row, at, head), &self.key(row, j, Self::shared(head)))
    }

    /// The logarithm of what φ(q) is divided by.
    fn taken(&self, row: usize, at: usize, head: usize) -> f64 {
        let map = feature_map::find(&self.recipe.map.kind).expect("a map");
        let x = Self::projected("q_proj", head, self.token(row, at));
        let scaled: Vec<f64> = x.iter().map(|x| x * (HEAD_DIM as f64).powf(-0.25)).collect();
        let exponents = map.eval_exponents(&scaled, &self.numbers(Role::Query, head));
        exponents.filter(|_| !self.recipe.map.unit).map_or(0.0, |e| e.into_iter().fold(f64::MIN, f64::max))
    }

    /// What the recipe says of a window and what stands beside it.
    pub(super) fn beside(&self, local: Local) -> Vec<f64> {
        match self.recipe.rule {
            Rule::None => self.near(local),
            Rule::Delta => self.mixed(local),
            Rule::Linear | Rule::Slots => self.joined(local),
        }
    }

    /// The window and the delta rule, each by its share; zeros for padding.
    pub(super) fn mixed(&self, local: Local) -> Vec<f64> {
        let logits = Self::weight(self.graph, &format!("{MODULE}.dijiang.mix"));
        let share = |head: usize| 1.0 / (1.0 + (-logits[head]).exp());
        let (near, (linear, _)) = (self.near(local), self.delta());
        let mixed = near.iter().zip(linear).enumerate().map(|(i, (near, linear))| {
            let (place, g) = (i / HEAD_DIM as usize, share(i / HEAD_DIM as usize % HEADS as usize));
            let (row, at) = (place / HEADS as usize / self.time, place / HEADS as usize % self.time);
            if self.is_token(row, at) { g * near + (1.0 - g) * linear } else { 0.0 }
        });
        mixed.collect()
    }
}
