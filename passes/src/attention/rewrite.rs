//! The pass: every attention site becomes a recurrence over φ(k) ⊗ v, and its growing cache a state
//! of fixed size.

use super::looks_back::looks_back;
use super::lower::Form;
use super::patterns::{NearMiss, find_sites};
use super::plan::{Plan, plans};
use super::positions;
use super::site::{AttentionSite, past_of, present_slot};
use super::site_writer::{SiteWriter, Written};
use super::softmaxes::Computed;
use crate::feature_map::added::is_added;
use crate::feature_map::recipe_check::{self, RecipeError};
use crate::feature_map::{self, FeatureMap};
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::ir::patch::{Patch, PatchError};
use crate::ir::shape::Dim;
use crate::ir::tensor::Tensor;
use crate::ir::walk::{inputs_of, nearest_first};
use dijiang_format::names::POSITIONS;
use dijiang_format::recipe::Recipe;
use std::collections::BTreeMap;
use std::fmt;

/// What the pass calls itself, in errors and as the origin of its nodes.
pub(super) const RULE: &str = "linear_attention";

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
    /// c, where the source makes c · tanh(x / c) of a score x.
    pub softcap: Option<f64>,
    pub mask: &'static str,
    /// How many tokens a query of the source sees, where they are so many and no more.
    pub window: Option<u32>,
    pub rotary: bool,
    pub cache: bool,
    /// Why the site stays softmax; `None` where it was rewritten.
    pub why_kept: Option<String>,
}

impl SiteReport {
    /// Whether it computes what the recipe says.
    pub fn is_linear(&self) -> bool {
        self.why_kept.is_none() && self.window.is_none()
    }

    /// Whether it computes what it did, with a state of the size of its window.
    pub fn keeps_window(&self) -> bool {
        self.why_kept.is_none() && self.window.is_some()
    }
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
        "the graph has no input `{POSITIONS}`, by which the recipe tells tokens apart (hint: export the model with it, or take another --recipe)"
    )]
    NoPositions,
    #[error(
        "the graph counts positions from the first token of each call, at {place:?} (hint: export the model with the input `position_ids`, or keep its attention with --recipe softmax)"
    )]
    Positions { place: String },
    #[error(
        "{node} looks from token to token, or at how many there are, outside an attention: a model that is fed token by token cannot (hint: keep its attention with --recipe softmax)"
    )]
    LooksBack { node: String },
}

/// The sites of a graph as reports, untouched.
pub fn inspect(graph: &Graph) -> Report {
    let found = find_sites(graph);
    let sites = found.sites.iter().map(|site| describe(site, None)).collect();
    Report { sites, misses: found.misses, ..Report::default() }
}

/// Rewrites the sites of `graph` that the recipe and `layers` name.
pub fn rewrite(graph: &mut Graph, options: &Options<'_>) -> Result<Report, RewriteError> {
    recipe_check::check_whole(options.recipe)?;
    let mut found = find_sites(graph);
    let count = found.attentions();
    let wide = options.recipe.wide.iter().flat_map(|wide| wide.layers.iter().flatten());
    let named = options.layers.unwrap_or_default().iter().chain(&options.recipe.softmax_layers).chain(wide);
    if let Some(layer) = named.into_iter().find(|l| **l >= count) {
        return Err(RewriteError::NoSuchLayer { layer: *layer, last: count.saturating_sub(1) });
    }
    let mut report = Report { misses: found.misses, ..Report::default() };
    let mut planned = plans(&found.sites, options);
    let lowered = found.sites.iter().zip(&planned).filter(|(_, plan)| plan.is_ok()).map(|(site, _)| site);
    move_positions(graph, &lowered.collect::<Vec<_>>(), &mut report);
    if !report.added_inputs.is_empty() {
        // What was computed from the old positions is gone.
        found.sites = find_sites(graph).sites;
        planned = plans(&found.sites, options);
    }
    let learning = found.sites.iter().zip(&planned).filter(|(_, plan)| plan.as_ref().is_ok_and(Plan::learns));
    let mut recipes = learning.map(|(site, _)| options.recipe.at(site.layer, site.mask.is_causal()));
    if recipes.any(|recipe| reads_positions(&recipe)) && graph.input(POSITIONS).is_none() {
        return Err(RewriteError::NoPositions);
    }
    for (site, plan) in found.sites.iter().zip(planned) {
        if let Ok(plan) = plan {
            patch_site(graph, RULE, &Work { site, plan, options }, replace_site)?;
        }
        report.sites.push(describe(site, plan.err()));
    }
    report.notes.extend(uncapped(&report));
    report.without_cache = without_cache(graph, &found.sites, &report);
    check_positions(graph, &found.sites, &mut report)?;
    check_looks(graph, &found.sites, &report)?;
    read_lengths_elsewhere(graph, &found.sites, &report.sites)?;
    report.dropped_inputs = drop_unused_inputs(graph)?;
    Ok(report)
}

/// Whether what is written tells tokens apart by their positions.
fn reads_positions(recipe: &Recipe) -> bool {
    recipe.by_position.is_some()
        || recipe.slots.is_some()
        || feature_map::find(&recipe.map.kind).is_some_and(FeatureMap::is_turned)
}

/// Without a cache that grows a decoder cannot count the tokens that came before.
fn move_positions(graph: &mut Graph, lowered: &[&AttentionSite], report: &mut Report) {
    if !lowered.iter().any(|site| site.mask.is_causal()) {
        return;
    }
    let moved = positions::move_to_input(graph, lowered.iter().any(|site| site.cache.is_some()));
    (report.added_inputs, report.notes) = (moved.added, moved.notes);
}

/// What is to be told of layers whose scores have a cap: there are no scores in a recurrence.
fn uncapped(report: &Report) -> Option<String> {
    let capped = report.sites.iter().filter(|site| site.is_linear() && site.softcap.is_some()).count();
    let was = match capped {
        0 => return None,
        1 => "1 layer that is linear now capped its scores".to_owned(),
        n => format!("{n} layers that are linear now capped their scores"),
    };
    Some(format!(
        "{was}: the softmax over near tokens, where there is one, still does, and what is linear has no scores to cap"
    ))
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

/// A state holds what an attention needs of earlier tokens, and nothing else does.
fn check_looks(graph: &Graph, sites: &[AttentionSite], report: &Report) -> Result<(), RewriteError> {
    let tokens = || graph.get_value(with_state(sites, report)?.q)?.ty.shape.as_ref()?.get(2).cloned();
    // What lacks a cache, or is an attention that was not recognised, is told of already.
    let tokens = tokens().filter(|_| report.without_cache.is_none());
    let nodes = tokens.map_or_else(Vec::new, |tokens| looks_back(graph, RULE, &tokens));
    let mut nodes = nodes.into_iter().map(|id| graph.node(id));
    let is_told = |node: &Node| report.missed().any(|miss| miss.node == node.name);
    let Some(node) = nodes.find(|node| !is_told(node)) else { return Ok(()) };
    Err(RewriteError::LooksBack { node: format!("node {:?} ({})", node.name, node.op.qualified_name()) })
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
        softcap: site.softcap,
        mask: site.mask.name(),
        window: site.mask.window(),
        rotary: site.rotary,
        cache: site.cache.is_some(),
        why_kept,
    }
}

/// A site, and what is to be written of it.
pub(super) struct Work<'a> {
    pub(super) site: &'a AttentionSite,
    pub(super) plan: Plan,
    pub(super) options: &'a Options<'a>,
}

/// Applies the patch that `write` writes of one site.
pub(super) fn patch_site(
    graph: &mut Graph,
    rule: &'static str,
    work: &Work<'_>,
    write: impl FnOnce(SiteWriter<'_, '_, '_>),
) -> Result<(), RewriteError> {
    let Work { site, plan, options } = *work;
    let recipe = options.recipe.at(site.layer, site.mask.is_causal());
    let options = &Options { recipe: &recipe, ..*options };
    patch_beside(graph, rule, site, |p| write(SiteWriter { p, site, plan, options, factors: None }))
}

/// The same of a site that is not rewritten.
pub(super) fn patch_beside(
    graph: &mut Graph,
    rule: &'static str,
    site: &AttentionSite,
    write: impl FnOnce(&mut Patch<'_>),
) -> Result<(), RewriteError> {
    let change = {
        let mut patch = Patch::new(graph, rule);
        write(&mut patch);
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
        let is_returned = present_slot(graph, node.outputs[0]).is_some();
        let past = node.input(0).and_then(|v| past_of(graph, v));
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

/// The linear attention in place of the softmax attention.
fn replace_site(mut writer: SiteWriter<'_, '_, '_>) {
    let Written { out, state, .. } = writer.attention();
    if let Some(state) = state {
        writer.drop_cache();
        writer.output_state(state);
    }
    writer.p.replace(writer.site.out, out);
}
