//! The pass: every attention site becomes a recurrence over φ(k) ⊗ v, and its growing cache a state
//! of fixed size.

use super::lower::{Dims, Form, HeadOrder, Lowered, Recurrence, RecurrentState, Sums, bidirectional};
use super::patterns::{NearMiss, find_sites};
use super::positions;
use super::site::AttentionSite;
use super::softmaxes::Computed;
use crate::feature_map::added::{self, is_added};
use crate::feature_map::recipe_check::{self, RecipeError};
use crate::feature_map::{self, Emitted, FeatureMap, Owner, Role};
use crate::ir::graph::{Def, Graph, NodeId, Use, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use crate::ir::walk::{inputs_of, nearest_first};
use crate::numeric::random::Random;
use dijiang_format::dtype::DType;
use dijiang_format::names::{POSITIONS, StatePart};
use dijiang_format::recipe::{Attention, Decay, Readout, Recipe, Rule};
use std::collections::BTreeMap;
use std::fmt;

/// What the pass calls itself, in errors and as the origin of its nodes.
pub(super) const RULE: &str = "linear_attention";

/// Added to φ(q)·z, so that a query that sees nothing but padding reads zero; in half precision its smallest number.
const EPSILON: f64 = 1e-30;
const HALF_EPSILON: f64 = 5.96e-8;

/// The logit of β at first: most of what a key holds is replaced.
const BETA: f32 = 2.0;

/// What to do with the sites of a graph.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    pub recipe: &'a Recipe,
    pub form: Form,
    pub seed: u64,
    /// Only these layers are rewritten; all where it is `None`.
    pub layers: Option<&'a [usize]>,
    /// The new parameters of the model in another form, by name: this form has the same, and shares their bytes.
    pub added: Option<&'a AddedWeights>,
}

/// One site, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteReport {
    pub name: String,
    pub layer: usize,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub scale: f64,
    pub mask: &'static str,
    pub rotary: bool,
    pub cache: bool,
    /// Why the site stays softmax; `None` where it was rewritten.
    pub why_kept: Option<String>,
}

/// What the pass did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub sites: Vec<SiteReport>,
    pub misses: Vec<NearMiss>,
    /// Graph inputs that nothing needs any more.
    pub dropped_inputs: Vec<String>,
    /// Graph inputs that stand for what the graph could no longer compute.
    pub added_inputs: Vec<String>,
    /// What could not be changed along with the sites, and why.
    pub notes: Vec<String>,
    /// An attention that stays softmax without a cache, in a graph that carries states from call to call.
    pub without_cache: Option<WithoutCache>,
}

/// An attention that sees the tokens of one call alone: fed in portions, the graph gives other numbers than fed all at
/// once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithoutCache {
    pub name: String,
    /// Why it stays softmax.
    pub why: String,
}

impl fmt::Display for WithoutCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, why } = self;
        write!(
            f,
            "attention {name:?} stays softmax ({why}), and a kept layer has no cache here: it does not see the tokens of earlier calls"
        )
    }
}

impl Report {
    /// Attentions that were not recognised.
    pub fn missed(&self) -> impl Iterator<Item = &NearMiss> {
        self.misses.iter().filter(|miss| miss.is_attention)
    }
}

/// The pass could not be carried out; the graph is as after the last complete patch.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("site {site:?}: {source}")]
    Patch { site: String, source: Box<PatchError> },
    /// Of a patch that belongs to no one site.
    #[error("the graph around the attention sites: {0}")]
    Around(Box<PatchError>),
    #[error("layer {layer} does not exist: the model has layers 0 to {last}")]
    NoSuchLayer { layer: usize, last: usize },
    #[error(
        "the graph counts positions from the first token of each call, at {place:?} (hint: export the model with the input `position_ids`, or keep its attention with --recipe softmax)"
    )]
    Positions { place: String },
}

/// The sites of a graph as reports, untouched.
pub fn inspect(graph: &Graph) -> Report {
    let found = find_sites(graph);
    let sites = found.sites.iter().map(|site| describe(site, None)).collect();
    Report { sites, misses: found.misses, ..Report::default() }
}

/// Rewrites the sites of `graph` that the recipe and `layers` name.
pub fn rewrite(graph: &mut Graph, options: &Options<'_>) -> Result<Report, RewriteError> {
    recipe_check::check(options.recipe)?;
    let found = find_sites(graph);
    let count = found.attentions();
    let named = options.layers.unwrap_or_default().iter().chain(&options.recipe.softmax_layers);
    if let Some(layer) = named.into_iter().find(|l| **l >= count) {
        return Err(RewriteError::NoSuchLayer { layer: *layer, last: count.saturating_sub(1) });
    }
    let mut report = Report { misses: found.misses, ..Report::default() };
    let reasons: Vec<Option<String>> = found.sites.iter().map(|site| reason_to_keep(site, options)).collect();
    let lowered = found.sites.iter().zip(&reasons).filter(|(_, kept)| kept.is_none()).map(|(site, _)| site);
    move_positions(graph, &lowered.collect::<Vec<_>>(), &mut report);
    for (site, kept) in found.sites.iter().zip(reasons) {
        if kept.is_none() {
            patch_site(graph, RULE, (site, options), replace_site)?;
        }
        report.sites.push(describe(site, kept));
    }
    report.without_cache = without_cache(graph, &found.sites, &report);
    check_positions(graph, &found.sites, &mut report)?;
    read_lengths_elsewhere(graph, &found.sites, &report.sites)?;
    report.dropped_inputs = drop_unused_inputs(graph)?;
    Ok(report)
}

/// Without a cache that grows a decoder cannot count the tokens that came before.
fn move_positions(graph: &mut Graph, lowered: &[&AttentionSite], report: &mut Report) {
    if !lowered.iter().any(|site| site.mask.is_causal()) {
        return;
    }
    let moved = positions::move_to_input(graph, lowered.iter().any(|site| site.cache.is_some()));
    (report.added_inputs, report.notes) = (moved.added, moved.notes);
}

/// A site that carries a state from call to call.
fn with_state<'s>(sites: &'s [AttentionSite], report: &Report) -> Option<&'s AttentionSite> {
    let mut pairs = sites.iter().zip(&report.sites);
    let found = pairs.find(|(site, report)| report.why_kept.is_none() && site.mask.is_causal());
    found.map(|(site, _)| site)
}

/// What looks from token to token within a call, in a graph that carries states.
fn without_cache(graph: &Graph, sites: &[AttentionSite], report: &Report) -> Option<WithoutCache> {
    let queries = graph.get_value(with_state(sites, report)?.q)?;
    let softmax = softmax_over(graph, queries.ty.shape.as_ref()?.get(2)?)?;
    let kept = sites.iter().zip(&report.sites).find(|(site, _)| reads(graph, site.out, softmax));
    if let Some((_, SiteReport { name, why_kept: Some(why), .. })) = kept {
        return Some(WithoutCache { name: name.clone(), why: why.clone() });
    }
    let name = graph.node(softmax).name.clone();
    let miss = report.missed().find(|miss| miss.node == name);
    let why = miss.map_or_else(|| "it was not recognised".to_owned(), |miss| miss.miss.reason.clone());
    Some(WithoutCache { name, why })
}

/// What a graph with states counts from the first token of a call begins again at every call. A cache that stays is
/// counted as ever.
fn check_positions(graph: &Graph, sites: &[AttentionSite], report: &mut Report) -> Result<(), RewriteError> {
    let counts_itself = report.without_cache.is_some() || !remaining_caches(graph).is_empty();
    let Some(site) = with_state(sites, report).filter(|_| !counts_itself) else { return Ok(()) };
    let tokens = graph.get_value(site.q).and_then(|q| q.ty.shape.as_ref()?.get(2)?.known());
    let fixed = tokens.filter(|tokens| *tokens > 1 && graph.input(POSITIONS).is_none());
    let recounted = positions::counted_anew(graph, RULE, fixed);
    if let Some(value) = recounted.found {
        let place = graph.value(value).name.clone();
        return Err(RewriteError::Positions { place });
    }
    report.notes.extend(recounted.notes);
    Ok(())
}

/// The attention in which so many queries see as many keys: those of the same call.
fn softmax_over(graph: &Graph, tokens: &Dim) -> Option<NodeId> {
    let computed = Computed::of(graph);
    let is_over = |id: &NodeId| {
        let node = graph.node(*id);
        let shape = graph.value(node.outputs[0]).ty.shape.as_deref();
        matches!(shape, Some([.., queries, keys]) if queries == tokens && keys == tokens)
            && node.op.is("Softmax")
            && computed.is_attention(graph, *id)
    };
    graph.order().into_iter().find(|id| *tokens != Dim::Unknown && is_over(id))
}

/// Whether a value is computed from what `node` gives in a few steps.
fn reads(graph: &Graph, value: ValueId, node: NodeId) -> bool {
    let steps = 4;
    graph.get_value(value).is_some()
        && nearest_first(value, steps, |v| inputs_of(graph, v))
            .any(|v| graph.producer(v).is_some_and(|(id, _)| id == node))
}

fn describe(site: &AttentionSite, why_kept: Option<String>) -> SiteReport {
    SiteReport {
        name: site.name.clone(),
        layer: site.layer,
        heads: site.heads,
        kv_heads: site.kv_heads,
        head_dim: site.head_dim,
        scale: site.scale,
        mask: site.mask.name(),
        rotary: site.rotary,
        cache: site.cache.is_some(),
        why_kept,
    }
}

pub(super) fn reason_to_keep(site: &AttentionSite, options: &Options<'_>) -> Option<String> {
    let recipe = options.recipe;
    let says = |what: &str| Some(what.to_owned());
    if recipe.attention == Attention::Softmax {
        return says("the recipe keeps softmax");
    }
    if recipe.softmax_layers.contains(&site.layer) {
        return says("the recipe keeps this layer");
    }
    if options.layers.is_some_and(|l| !l.contains(&site.layer)) {
        return says("the layer was not asked for");
    }
    if !site.mask.is_causal() && site.cache.is_some() {
        return Some(format!(
            "its mask is {}, and it has a cache: no recurrence runs both ways",
            site.mask.name()
        ));
    }
    if !site.mask.is_causal() && recipe.rule == Rule::Delta {
        return Some(format!(
            "its mask is {}, and the delta rule follows the order of the tokens",
            site.mask.name()
        ));
    }
    let reads_hidden =
        recipe.decay == Decay::Learned || recipe.readout == Readout::GroupNorm || recipe.rule == Rule::Delta;
    if reads_hidden && site.hidden.is_none() {
        return says(
            "the recipe's gate reads what the values are projected from, and they are not the output of one linear layer",
        );
    }
    None
}

/// Applies the patch that `write` writes of one site.
pub(super) fn patch_site(
    graph: &mut Graph,
    rule: &'static str,
    (site, options): (&AttentionSite, &Options<'_>),
    write: impl FnOnce(SiteWriter<'_, '_, '_>),
) -> Result<(), RewriteError> {
    let change = {
        let mut patch = Patch::new(graph, rule);
        write(SiteWriter { p: &mut patch, site, options });
        patch.finish()
    };
    let applied = graph.apply(change).map(|_| ());
    applied.map_err(|e| RewriteError::Patch { site: site.name.clone(), source: Box::new(e) })
}

/// Where the length of a cache that is gone is still read, for the mask of an attention that stays softmax,
/// a cache that stays is as long.
fn read_lengths_elsewhere(
    graph: &mut Graph,
    sites: &[AttentionSite],
    reports: &[SiteReport],
) -> Result<(), RewriteError> {
    let only_lengths = |input: &ValueId| {
        let uses = &graph.value(*input).uses;
        let reads_length = |user: &Use| match user {
            Use::Node { node, .. } => graph.node(*node).op.is("Shape"),
            Use::GraphOutput(_) => false,
        };
        !uses.is_empty() && uses.iter().all(reads_length)
    };
    let gone = sites.iter().zip(reports).filter(|(_, report)| report.why_kept.is_none());
    let gone = gone.filter_map(|(site, _)| site.cache.as_ref());
    let gone: Vec<ValueId> =
        gone.flat_map(|cache| [cache.past_key, cache.past_value]).filter(only_lengths).collect();
    let stay = remaining_caches(graph);
    let change = {
        let mut patch = Patch::new(graph, "read_lengths_elsewhere");
        for input in gone {
            let alike = stay.iter().find(|v| graph.value(**v).ty.agrees(&graph.value(input).ty));
            alike.into_iter().for_each(|cache| patch.replace(input, *cache));
        }
        patch.finish()
    };
    graph.apply(change).map(|_| ()).map_err(|e| RewriteError::Around(Box::new(e)))
}

/// Inputs that are joined with the new tokens to a graph output.
fn remaining_caches(graph: &Graph) -> Vec<ValueId> {
    let past = |id: NodeId| {
        let node = graph.node(id);
        let uses = &graph.value(node.outputs[0]).uses;
        let is_returned = uses.iter().any(|user| matches!(user, Use::GraphOutput(_)));
        let past = node.input(0).filter(|v| matches!(graph.value(*v).def, Def::Input));
        past.filter(|_| node.op.is("Concat") && matches!(node.op.int("axis"), Some(2 | -2)) && is_returned)
    };
    graph.order().into_iter().filter_map(past).collect()
}

/// Takes away the inputs that nothing reads, such as the past of rewritten sites.
pub fn drop_unused_inputs(graph: &mut Graph) -> Result<Vec<String>, RewriteError> {
    let unused: Vec<ValueId> =
        graph.inputs().iter().copied().filter(|v| graph.value(*v).uses.is_empty()).collect();
    let names = unused.iter().map(|v| graph.value(*v).name.clone()).collect();
    let change = {
        let mut patch = Patch::new(graph, "drop_unused_inputs");
        unused.into_iter().for_each(|v| patch.drop_input(v));
        patch.finish()
    };
    graph.apply(change).map_err(|e| RewriteError::Around(Box::new(e)))?;
    Ok(names)
}

/// New parameters by name.
pub type AddedWeights = BTreeMap<String, Tensor>;

/// The new parameters of a graph that was rewritten.
pub fn added_weights(graph: &Graph) -> AddedWeights {
    let new = graph.consts().filter(|(id, name, _)| graph.value(*id).is_weight && is_added(name));
    new.map(|(_, name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

/// Writes the patch of one site.
pub(super) struct SiteWriter<'p, 'g, 'o> {
    pub(super) p: &'p mut Patch<'g>,
    pub(super) site: &'o AttentionSite,
    options: &'o Options<'o>,
}

/// The linear attention in place of the softmax attention.
fn replace_site(mut writer: SiteWriter<'_, '_, '_>) {
    let (out, state) = writer.attention();
    if let Some(state) = state {
        writer.drop_cache();
        writer.output_state(state);
    }
    writer.p.replace(writer.site.out, out);
}

impl SiteWriter<'_, '_, '_> {
    /// What stands for the site's output, and the state after it.
    pub(super) fn attention(&mut self) -> (ValueId, Option<RecurrentState>) {
        self.p.set_scope(&format!("{}/dijiang", self.site.name));
        let valid = self.site.mask.padding().map(|mask| self.valid_tokens(mask));
        let (q, mut k) = self.features();
        let causal = self.site.mask.is_causal();
        if let Some(valid) = valid.filter(|_| !(causal && self.masks_otherwise())) {
            let tokens = self.p.unsqueeze(valid, &[1, 3]);
            k = self.p.mul(k, tokens);
        }
        let v = match self.puts_heads_first() {
            true => self.site.v,
            false => self.p.cast(self.site.v, DType::F32),
        };
        let dims = self.dims(q);
        let (sums, state) = match causal {
            true => {
                let lowered = self.recurrence([q, k, v], valid, dims);
                (lowered.sums, Some(lowered.state))
            }
            false => (bidirectional::lower(self.p, self.options.form, [q, k, v], dims), None),
        };
        let read = match self.options.recipe.readout {
            Readout::Sum if !dims.divides => sums.num,
            Readout::Sum => self.read_sum(&sums),
            Readout::GroupNorm => self.read_group_norm(&sums),
        };
        let dtype = self.p.dtype(self.site.out);
        let narrow = self.p.cast(read, dtype);
        let out = match sums.order {
            HeadOrder::HeadMajor => narrow,
            HeadOrder::TokenMajor => self.p.transpose(narrow, &[0, 2, 1, 3]),
        };
        (out, state)
    }

    fn dims(&mut self, q: ValueId) -> Dims {
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
        self.options.form.masks_values() || self.options.recipe.rule == Rule::Delta
    }

    /// Whether features are `[heads, batch, sequence, m]`.
    fn puts_heads_first(&self) -> bool {
        self.options.form.puts_heads_first() && self.options.recipe.rule == Rule::Linear
    }

    /// Whether what is read is divided by φ(q)·z.
    fn divides(&self) -> bool {
        let recipe = self.options.recipe;
        recipe.readout == Readout::Sum && recipe.rule == Rule::Linear
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
        let start = p.node(crate::ir::op::Op::new("Neg"), &[time]);
        let end = p.ints(&[i64::MAX]);
        let recent = p.slice_to(mask, 1, start, end);
        let recent = p.cast(recent, DType::F32);
        // States the dims again, which a slice from a computed bound does not.
        let batch = p.shape_of(self.site.q, 0, 1);
        let shape = p.concat(&[batch, time], 0);
        p.reshape_to(recent, shape)
    }

    /// The causal sums, and the state in and out. Padding neither adds to the state nor decays it.
    fn recurrence(&mut self, [q, k, v]: [ValueId; 3], valid: Option<ValueId>, dims: Dims) -> Lowered {
        let mut log_decay = self.log_decay();
        if let Some((valid, log)) = valid.zip(log_decay) {
            let tokens = self.p.unsqueeze(valid, &[1]);
            log_decay = Some(self.p.mul(log, tokens));
        }
        let mut beta = self.beta();
        if let Some((valid, all)) = valid.zip(beta) {
            let tokens = self.p.unsqueeze(valid, &[1]);
            beta = Some(self.p.mul(all, tokens));
        }
        let state = self.past_state(dims);
        self.options.form.lower(self.p, &Recurrence { q, k, v, valid, log_decay, beta, state, dims })
    }

    /// φ of queries and keys, each scaled by √scale.
    fn features(&mut self) -> (ValueId, ValueId) {
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

    fn features_of(&mut self, map: &dyn FeatureMap, role: Role, shared: &mut Emitted) -> ValueId {
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
        let scaled = self.scaled(x);
        self.emit(map, scaled, &emitted, role)
    }

    /// φ, of length one where the recipe says so.
    fn emit(&mut self, map: &dyn FeatureMap, x: ValueId, emitted: &Emitted, role: Role) -> ValueId {
        let features = map.emit(self.p, x, emitted, role);
        match self.options.recipe.map.unit {
            true => feature_map::emit_unit(self.p, features),
            false => features,
        }
    }

    /// `[batch, heads, sequence, head_dim]` → `[heads, batch, sequence, m]`: weights per head multiply the rows of all.
    fn features_by_head(
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
        let scaled = self.scaled(rows);
        let features = self.emit(map, scaled, emitted, role);
        let last = self.p.shape_of(features, 2, 3);
        let shape = self.p.concat(&[heads, batch, time, last], 0);
        self.p.reshape_to(features, shape)
    }

    /// f32, but where a form and the features allow for less, that of the model. Sums must then be free to scale.
    fn feature_type(&mut self, map: &dyn FeatureMap) -> DType {
        let own = self.p.dtype(self.site.q);
        let scales = map.sums_to_one() && self.divides();
        match self.puts_heads_first() && scales && own == DType::F16 {
            true => own,
            false => DType::F32,
        }
    }

    pub(super) fn scaled(&mut self, x: ValueId) -> ValueId {
        self.p.mul_scalar(x, self.site.scale.sqrt())
    }

    /// log a_t, `[batch, kv_heads, sequence]`.
    pub(super) fn log_decay(&mut self) -> Option<ValueId> {
        match self.options.recipe.decay {
            Decay::None => None,
            Decay::Fixed => Some(self.fixed_decay()),
            Decay::Learned => self.site.hidden.map(|hidden| self.learned_decay(hidden)),
        }
    }

    fn fixed_decay(&mut self) -> ValueId {
        let heads = self.site.kv_heads;
        let logs: Vec<f32> = (0..heads).map(|h| (-(-5.0 - h as f64).exp2()).ln_1p() as f32).collect();
        let logs = self.parameter(None, "log_decay", Tensor::from_f32(&[heads, 1], &logs));
        let shape = self.p.shape_of(self.site.k, 0, 3);
        self.p.expand(logs, shape)
    }

    /// log sigmoid(w·x + b), with `w` zero and `b` spread at first so that heads forget over 2⁴ to 2¹⁰ tokens.
    fn learned_decay(&mut self, hidden: ValueId) -> ValueId {
        let heads = self.site.kv_heads;
        let spread = |h: u64| 4.0 + 6.0 * h as f32 / (heads.max(2) - 1) as f32;
        // sigmoid(b) = 1 - 2^-s
        let biases: Vec<f32> = (0..heads).map(|h| (spread(h).exp2() - 1.0).ln()).collect();
        let logits = self.gate(hidden, ["gate.weight", "gate.bias"], &biases);
        let p = &mut *self.p;
        let flipped = p.neg(logits);
        let soft = p.softplus(flipped);
        p.neg(soft)
    }

    /// w·x + b with one row per key/value head, f32 `[batch, kv_heads, sequence]`; `w` is zero at first.
    fn gate(&mut self, hidden: ValueId, names: [&str; 2], biases: &[f32]) -> ValueId {
        let (heads, width) = (self.site.kv_heads, self.p.known_dim(hidden, 2));
        let zeros = vec![0.0; (heads * width) as usize];
        let weight = self.parameter(None, names[0], Tensor::from_f32(&[heads, width], &zeros));
        let bias = self.parameter(None, names[1], Tensor::from_f32(&[heads], biases));
        let dtype = self.gate_type(hidden);
        let p = &mut *self.p;
        let (x, weight) = (p.cast(hidden, dtype), p.cast(weight, dtype));
        let products = p.linear(x, weight, None);
        let products = p.cast(products, DType::F32);
        let logits = p.add(products, bias);
        p.transpose(logits, &[0, 2, 1])
    }

    /// β_t = sigmoid(w·x + b) of the delta rule, with `w` zero at first.
    fn beta(&mut self) -> Option<ValueId> {
        let hidden = self.site.hidden.filter(|_| self.options.recipe.rule == Rule::Delta)?;
        let biases = vec![BETA; self.site.kv_heads as usize];
        let logits = self.gate(hidden, ["beta.weight", "beta.bias"], &biases);
        Some(self.p.sigmoid(logits))
    }

    /// Of the product w·x: what is served multiplies in the model's own f16, which is as fine as its hidden states.
    fn gate_type(&mut self, hidden: ValueId) -> DType {
        let own = self.p.dtype(hidden);
        match self.options.form.is_served() && own == DType::F16 {
            true => own,
            false => DType::F32,
        }
    }

    fn past_state(&mut self, dims: Dims) -> RecurrentState {
        let (heads, features, width) = (self.site.kv_heads, dims.features as u64, self.site.value_dim);
        RecurrentState {
            s: self.past(StatePart::Sums, &[heads, features, width]),
            z: dims.divides.then(|| self.past(StatePart::Normalizer, &[heads, features])),
        }
    }

    fn past(&mut self, part: StatePart, rest: &[u64]) -> ValueId {
        let batch = self.p.dim(self.site.q, 0);
        let shape: Vec<Dim> = std::iter::once(batch).chain(rest.iter().copied().map(Dim::Known)).collect();
        self.p.input(&part.past(self.site.layer), DType::F32, shape)
    }

    fn drop_cache(&mut self) {
        if let Some(cache) = &self.site.cache {
            self.p.drop_output(&cache.present_key);
            self.p.drop_output(&cache.present_value);
        }
    }

    pub(super) fn output_state(&mut self, state: RecurrentState) {
        // onnxruntime-genai wants a state of this name, of three axes.
        let normalizer = state.z.unwrap_or_else(|| self.past(StatePart::Normalizer, &[1, 1]));
        for (part, value) in [(StatePart::Sums, state.s), (StatePart::Normalizer, normalizer)] {
            self.p.output(&part.present(self.site.layer), value);
        }
    }

    fn read_sum(&mut self, sums: &Sums) -> ValueId {
        let Some(den) = sums.den else {
            self.p.fail("the readout divides by a sum that was not computed".to_owned());
            return sums.num;
        };
        let epsilon = if self.p.dtype(den) == DType::F16 { HALF_EPSILON } else { EPSILON };
        let den = self.p.add_scalar(den, epsilon);
        if !self.puts_heads_first() {
            return self.p.div(sums.num, den);
        }
        // A device is twice as fast at it where rows are one axis.
        let rows = self.p.reshape(sums.num, &[-1, self.site.value_dim as i64]);
        let den = self.p.reshape(den, &[-1, 1]);
        let read = self.p.div(rows, den);
        let like = self.p.shape_of(sums.num, 0, 4);
        self.p.reshape_to(read, like)
    }

    /// GroupNorm over each head, gated by SiLU(W_g x) (RetNet; the released code).
    fn read_group_norm(&mut self, sums: &Sums) -> ValueId {
        let site = self.site;
        let Some(hidden) = site.hidden else {
            self.p.fail("the readout's gate reads the hidden state, which was not found".to_owned());
            return sums.num;
        };
        let width = self.p.known_dim(hidden, 2);
        let rows = site.heads * site.value_dim;
        let mut random = Random::named(self.options.seed, &format!("layer.{}.readout", self.site.layer));
        let deviation = (width as f64).sqrt().recip();
        let values: Vec<f32> = (0..rows * width).map(|_| (random.normal() * deviation) as f32).collect();
        let weight = self.parameter(None, "readout.weight", Tensor::from_f32(&[rows, width], &values));
        let p = &mut *self.p;
        let ones =
            p.constant("ones", Tensor::from_f32(&[site.value_dim], &vec![1.0; site.value_dim as usize]));
        let zeros =
            p.constant("zeros", Tensor::from_f32(&[site.value_dim], &vec![0.0; site.value_dim as usize]));
        let normal = p.layer_norm(sums.num, ones, zeros, 1e-5);
        let wide = p.cast(hidden, DType::F32);
        let gate = p.linear(wide, weight, None);
        let open = p.sigmoid(gate);
        let silu = p.mul(gate, open);
        let heads = p.reshape(silu, &[0, 0, site.heads as i64, site.value_dim as i64]);
        let heads = match sums.order {
            HeadOrder::HeadMajor => p.transpose(heads, &[0, 2, 1, 3]),
            HeadOrder::TokenMajor => heads,
        };
        p.mul(normal, heads)
    }
}
