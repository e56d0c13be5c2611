//! The patterns under which attention is found, in the order they are tried. To add one, add a file
//! and a row here; feature maps and lowerings stay as they are.

use super::mask::{Scores, classify};
use super::site::AttentionSite;
use super::softmaxes::Computed;
use crate::ir::graph::{Graph, Node, NodeId, Use, ValueId};
use crate::pattern::{Match, Miss, Pat, Stage, find};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

mod decomposed;

/// One way to spell attention. Patterns hold no state.
pub trait AttentionPattern: Sync {
    /// As in reports: the file's name.
    fn name(&self) -> &'static str;

    /// The operators, backwards from the value that becomes [`AttentionSite::out`].
    fn pattern(&self) -> Pat;

    /// The canonical site, or where and why what matched is not attention that can be rewritten.
    fn site(&self, graph: &Graph, found: &Match, known: &mut KnownScores) -> Result<AttentionSite, Miss>;
}

/// What was found out about scores, by how they are computed: a model's layers do the same, and
/// evaluating is slow.
#[derive(Debug, Default)]
pub struct KnownScores(BTreeMap<String, Result<Scores, Miss>>);

impl KnownScores {
    /// [`classify`], or what it said of scores that are computed alike from another product.
    pub fn classify(
        &mut self,
        graph: &Graph,
        scores: ValueId,
        product: ValueId,
        cached: bool,
    ) -> Result<Scores, Miss> {
        let shape = &graph.value(product).ty.shape;
        let key = format!("{cached} {shape:?} {}", spell(graph, scores, product));
        self.0.entry(key).or_insert_with(|| classify(graph, scores, product, cached)).clone()
    }
}

/// How `value` is computed from `product`: operators on the way by name, everything else by id.
fn spell(graph: &Graph, value: ValueId, product: ValueId) -> String {
    if value == product {
        return "product".to_owned();
    }
    match graph.producer(value).filter(|_| depends(graph, value, product)) {
        None => match graph.as_scalar(value) {
            // Each layer has its own scale, of the same number.
            Some(number) => format!("{number:e}"),
            None => format!("{value:?}"),
        },
        Some((node, slot)) => {
            let node = graph.node(node);
            let inputs = node.inputs.iter().map(|v| v.map_or("_".to_owned(), |v| spell(graph, v, product)));
            let inputs: Vec<String> = inputs.collect();
            format!("{}{:?}.{slot}({})", node.op.qualified_name(), node.op.attrs, inputs.join(","))
        }
    }
}

/// Whether `product` goes into `value` by a few steps.
pub(super) fn depends(graph: &Graph, value: ValueId, product: ValueId) -> bool {
    let (mut seen, mut stack) = (BTreeSet::new(), vec![(value, 0)]);
    while let Some((value, depth)) = stack.pop() {
        if value == product {
            return true;
        }
        if depth < MAX_STEPS
            && seen.insert(value)
            && let Some((node, _)) = graph.producer(value)
        {
            stack.extend(graph.node(node).inputs.iter().flatten().map(|v| (*v, depth + 1)));
        }
    }
    false
}

/// Operators that stand between a product and the softmax at most.
const MAX_STEPS: usize = 8;

/// All patterns.
pub static PATTERNS: &[&dyn AttentionPattern] = &[&decomposed::Decomposed];

/// A softmax that stays, with the pattern that came closest.
#[derive(Debug, Clone)]
pub struct NearMiss {
    /// The softmax, or the value the pattern was tried at.
    pub node: String,
    pub pattern: &'static str,
    pub miss: Miss,
    /// Whether it is an attention at all, or the softmax of a classifier, a router or the like.
    pub is_attention: bool,
}

impl fmt::Display for NearMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} {}", self.node, self.pattern, self.miss)
    }
}

/// What a graph holds.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// In topological order.
    pub sites: Vec<AttentionSite>,
    /// Which of the graph's attentions each site is, where those that were missed count too.
    pub layers: Vec<usize>,
    pub misses: Vec<NearMiss>,
}

impl Found {
    /// The attentions of the graph, recognised or not.
    pub fn attentions(&self) -> usize {
        self.sites.len() + self.misses.iter().filter(|m| m.is_attention).count()
    }
}

/// Finds every attention site, and for every softmax that belongs to none, the closest miss.
pub fn find_sites(graph: &Graph) -> Found {
    let mut found = Found::default();
    let mut taken = BTreeSet::new();
    let mut known = KnownScores::default();
    let mut failed: Vec<(ValueId, &'static str, Miss)> = Vec::new();
    let patterns: Vec<_> = PATTERNS.iter().map(|p| (p, p.pattern())).collect();
    for node in graph.order() {
        let value = graph.node(node).outputs[0];
        for (pattern, shape) in &patterns {
            match find(graph, shape, value) {
                Ok(matched) => match pattern.site(graph, &matched, &mut known) {
                    Ok(site) => {
                        taken.extend(matched.nodes.iter().copied());
                        found.sites.push(site);
                    }
                    Err(mut miss) => {
                        miss.matched = matched.nodes.len();
                        failed.push((value, pattern.name(), miss));
                    }
                },
                Err(miss) => failed.push((value, pattern.name(), miss)),
            }
        }
    }
    tell_apart(&mut found.sites);
    let computed = Computed::of(graph);
    let mut missed = BTreeSet::new();
    for id in graph.order() {
        let node = graph.node(id);
        if node.op.is("Softmax") && !taken.contains(&id) {
            let is_attention = computed.is_attention(graph, id);
            found.misses.extend(closest(graph, id, &failed).map(|miss| NearMiss { is_attention, ..miss }));
            missed.extend(is_attention.then_some(id));
        } else if is_whole_attention(node) {
            found.misses.push(whole(graph, node));
            missed.insert(id);
        }
    }
    found.layers = layers(graph, &found.sites, &missed);
    found
}

/// An attention operator that no clean-up has taken apart.
fn is_whole_attention(node: &Node) -> bool {
    node.op.name().ends_with("Attention") && node.op.name() != "LinearAttention"
}

fn whole(graph: &Graph, node: &Node) -> NearMiss {
    let reason = format!("operator {} could not be taken apart", node.op.qualified_name());
    let miss =
        Miss { stage: Stage::Shape, matched: 0, place: graph.value(node.outputs[0]).name.clone(), reason };
    NearMiss { node: node.name.clone(), pattern: "operator", miss, is_attention: true }
}

/// The place of every site among all attentions, in the order the graph computes them.
fn layers(graph: &Graph, sites: &[AttentionSite], missed: &BTreeSet<NodeId>) -> Vec<usize> {
    let order: BTreeMap<NodeId, usize> = graph.order().into_iter().zip(0..).collect();
    let missed: Vec<usize> = missed.iter().map(|id| order[id]).collect();
    let place = |site: &AttentionSite| graph.producer(site.out).map_or(0, |(id, _)| order[&id]);
    let before = |site: &AttentionSite| missed.iter().filter(|m| **m < place(site)).count();
    sites.iter().enumerate().map(|(i, site)| i + before(site)).collect()
}

/// Sites whose names say nothing, or the same, are numbered.
fn tell_apart(sites: &mut [AttentionSite]) {
    let names: Vec<String> = sites.iter().map(|s| s.name.clone()).collect();
    for (layer, site) in sites.iter_mut().enumerate() {
        let twins = names.iter().filter(|n| **n == site.name).count();
        if site.name.is_empty() {
            site.name = format!("attention.{layer}");
        } else if twins > 1 {
            site.name = format!("{}.{layer}", site.name);
        }
    }
}

/// Of the patterns tried behind a softmax, the one that got furthest.
fn closest(graph: &Graph, softmax: NodeId, failed: &[(ValueId, &'static str, Miss)]) -> Option<NearMiss> {
    let behind = reach(graph, graph.node(softmax).outputs[0]);
    let best = failed
        .iter()
        .filter(|(value, ..)| behind.contains(value))
        .max_by_key(|(_, _, miss)| (miss.stage, miss.matched))?;
    let node = graph.node(softmax).name.clone();
    Some(NearMiss { node, pattern: best.1, miss: best.2.clone(), is_attention: false })
}

/// A value and those computed from it by few steps.
fn reach(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let mut reached = vec![value];
    for _ in 0..4 {
        let next: Vec<ValueId> = reached
            .iter()
            .flat_map(|v| &graph.value(*v).uses)
            .filter_map(|user| match user {
                Use::Node { node, .. } => Some(graph.node(*node).outputs.clone()),
                Use::GraphOutput(_) => None,
            })
            .flatten()
            .filter(|v| !reached.contains(v))
            .collect();
        reached.extend(next);
    }
    reached
}
