//! The patterns under which attention is found, in the order they are tried. To add one, add a file
//! and a row here; feature maps and lowerings stay as they are.
//!
//! A pattern says which operators an attention is made of. Other differences between models go elsewhere:
//! - another repetition of keys over query heads, or another cache: `attention/site.rs`, where `trace_stream` follows
//!   keys and values back to the tokens and the cache;
//! - another layout of heads, as where they are folded into the batch: a rule in `canon/` that brings them to
//!   `[batch, heads, tokens, head_dim]`, as `canon/folded_heads.rs` does;
//! - another mask: `attention/mask.rs`, a variant of `Kind` that says which keys it lets through, and of `Mask`;
//! - an operator that computes an attention, or a part of one, in one node: a rule `canon/expand_NAME.rs` that takes it
//!   apart, with a row in `canon/mod.rs`. No pattern has to know it then.

use super::mask::{Scores, classify};
use super::site::{AttentionSite, unfollowed};
use super::softmaxes::Computed;
use crate::ir::graph::{Graph, Node, NodeId, ValueId};
use crate::ir::ops::attention::unsupported;
use crate::ir::walk::{depth_first, inputs_of, nearest_first, outputs_after};
use crate::pattern::{Match, Miss, Pat, Stage, find, matches};
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

/// How `value` is computed from `product`: a line for each operator on the way, with numbers for what it reads, and
/// everything else by id.
fn spell(graph: &Graph, value: ValueId, product: ValueId) -> String {
    let is_on_the_way = |v: ValueId| v != product && depends(graph, v, product);
    let before = |v: ValueId| if is_on_the_way(v) { inputs_of(graph, v) } else { Vec::new() };
    let values: Vec<ValueId> = depth_first(value, before).collect();
    let numbers: BTreeMap<ValueId, usize> = values.iter().copied().zip(0..).collect();
    let lines = values.iter().map(|v| match graph.producer(*v).filter(|_| is_on_the_way(*v)) {
        Some((node, slot)) => {
            let node = graph.node(node);
            let inputs: Vec<Option<&usize>> = node.inputs.iter().map(|v| numbers.get(&(*v)?)).collect();
            format!("{}{:?}.{slot}{inputs:?}", node.op.qualified_name(), node.op.attrs)
        }
        None if *v == product => "product".to_owned(),
        // Each layer has its own scale, of the same number.
        None => graph.as_scalar(*v).map_or_else(|| format!("{v:?}"), |number| format!("{number:e}")),
    });
    lines.collect::<Vec<String>>().join("; ")
}

/// Whether `product` goes into `value` by a few steps.
pub(super) fn depends(graph: &Graph, value: ValueId, product: ValueId) -> bool {
    nearest_first(value, MAX_STEPS, |v| inputs_of(graph, v)).any(|v| v == product)
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
        let Miss { stage, place, reason, .. } = &self.miss;
        let what = match stage {
            Stage::Shape => "it is not computed as attention is known to be, ",
            Stage::Check => "",
        };
        write!(f, "{:?}, at {place:?}: {what}{reason}", self.node)
    }
}

/// What a graph holds.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// In topological order.
    pub sites: Vec<AttentionSite>,
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
    let tried: Vec<Tried> = PATTERNS.iter().map(|p| Tried { pattern: *p, shape: p.pattern() }).collect();
    let mut refused: BTreeMap<ValueId, Vec<(&'static str, Miss)>> = BTreeMap::new();
    let order = graph.order();
    for node in &order {
        let value = graph.node(*node).outputs[0];
        for Tried { pattern, shape } in &tried {
            let Some(matched) = matches(graph, shape, value) else { continue };
            match pattern.site(graph, &matched, &mut known) {
                Ok(site) => {
                    taken.extend(matched.nodes.iter().copied());
                    found.sites.push(site);
                }
                Err(miss) => {
                    let miss = Miss { matched: matched.nodes.len(), ..miss };
                    refused.entry(value).or_default().push((pattern.name(), miss));
                }
            }
        }
    }
    let places: BTreeMap<NodeId, usize> = order.iter().copied().zip(0..).collect();
    let failed = Failed { places: &places, tried, refused };
    let computed = Computed::of(graph);
    let mut missed = Vec::new();
    for id in order {
        let node = graph.node(id);
        if node.op.is("Softmax") && !taken.contains(&id) {
            let is_attention = computed.is_attention(graph, id);
            let told = rounded(graph, node).or_else(|| in_einsum(graph, node));
            let miss = told.or_else(|| {
                let closest = failed.closest(graph, id)?;
                let other =
                    (closest.miss.stage == Stage::Shape).then(|| before_values(graph, node)).flatten();
                Some(other.unwrap_or(closest))
            });
            found.misses.extend(miss.map(|miss| NearMiss { is_attention, ..miss }));
            missed.extend(is_attention.then_some(id));
        } else if is_attention_operator(node) {
            found.misses.push(not_taken_apart(graph, node));
            missed.push(id);
        }
    }
    let missed: Vec<usize> = missed.iter().map(|id| places[id]).collect();
    number(graph, &mut found.sites, &places, &missed);
    tell_apart(&mut found.sites);
    found
}

/// An attention operator that no clean-up has taken apart.
fn is_attention_operator(node: &Node) -> bool {
    node.op.name().ends_with("Attention") && node.op.name() != "LinearAttention"
}

fn not_taken_apart(graph: &Graph, node: &Node) -> NearMiss {
    let op = &node.op;
    let option = unsupported(op, |slot| node.input(slot).is_some(), node.outputs.len());
    let option = option.filter(|_| op.spec().is_some()).map(|option| format!("{option} is not known"));
    let shape = || node.inputs.iter().flatten().find_map(|v| unfollowed(graph, *v));
    let why = option.or_else(shape).map_or_else(String::new, |why| format!(": {why}"));
    let reason = format!("operator {} could not be taken apart{why}", op.qualified_name());
    let miss =
        Miss { stage: Stage::Shape, matched: 0, place: graph.value(node.outputs[0]).name.clone(), reason };
    NearMiss { node: node.name.clone(), pattern: "operator", miss, is_attention: true }
}

/// A softmax whose weights are rounded to whole numbers before they meet the values.
fn rounded(graph: &Graph, softmax: &Node) -> Option<NearMiss> {
    let is_mixed = |v: ValueId| graph.made_by(v, "MatMul").is_some();
    let after = |v: ValueId| if is_mixed(v) { Vec::new() } else { outputs_after(graph, v) };
    let mut near = nearest_first(softmax.outputs[0], STEPS_AFTER, after);
    let (place, rounding) = near.find_map(|v| Some((v, graph.made_by(v, "QuantizeLinear")?)))?;
    let reason = format!(
        "its weights are rounded to whole numbers by QuantizeLinear, node {:?} (hint: convert the model as it was before that, and quantise what comes of it)",
        rounding.name
    );
    let miss = Miss::check(&graph.value(place).name, reason);
    Some(NearMiss { node: softmax.name.clone(), pattern: "operator", miss, is_attention: true })
}

/// A softmax whose weights meet the values in an `Einsum` that no clean-up has taken apart.
fn in_einsum(graph: &Graph, softmax: &Node) -> Option<NearMiss> {
    let mut near = nearest_first(softmax.outputs[0], STEPS_AFTER, |v| outputs_after(graph, v));
    let product = near.find_map(|v| {
        let made = ["MatMul", "Einsum"].iter().find_map(|op| graph.made_by(v, op))?;
        Some((v, made))
    });
    let (place, einsum) = product.filter(|(_, node)| node.op.is("Einsum"))?;
    let reason = format!(
        "its weights meet the values in Einsum, node {:?}, of the equation {:?}, and only products by head are known",
        einsum.name,
        einsum.op.str("equation").unwrap_or_default()
    );
    let miss = Miss::check(&graph.value(place).name, reason);
    Some(NearMiss { node: softmax.name.clone(), pattern: "operator", miss, is_attention: true })
}

/// Operators that may stand between a softmax and the product with the values.
const AROUND_WEIGHTS: [&str; 5] = ["Softmax", "Cast", "IsNaN", "Identity", "Where"];

/// A softmax whose weights are changed before they meet the values.
fn before_values(graph: &Graph, softmax: &Node) -> Option<NearMiss> {
    let is_mixed = |v: ValueId| graph.made_by(v, "MatMul").is_some();
    let after = |v: ValueId| if is_mixed(v) { Vec::new() } else { outputs_after(graph, v) };
    let near: Vec<ValueId> = nearest_first(softmax.outputs[0], STEPS_AFTER, after).collect();
    near.iter().any(|v| is_mixed(*v)).then_some(())?;
    let maker = |v: &ValueId| graph.producer(*v).map(|(id, _)| (*v, graph.node(id)));
    let is_unknown = |(_, node): &(ValueId, &Node)| {
        !node.op.is("MatMul") && !AROUND_WEIGHTS.iter().any(|known| node.op.is(known))
    };
    let (place, node) = near.iter().filter_map(maker).find(is_unknown)?;
    let reason = format!(
        "operator {}, node {:?}, stands between the softmax and the product with the values, and is not known there",
        node.op.qualified_name(),
        node.name
    );
    let miss = Miss::check(&graph.value(place).name, reason);
    Some(NearMiss { node: softmax.name.clone(), pattern: "operator", miss, is_attention: true })
}

/// Gives every site its place among all attentions, in the order the graph computes them. `missed` has the places of
/// those that were not recognised, in order.
fn number(graph: &Graph, sites: &mut [AttentionSite], places: &BTreeMap<NodeId, usize>, missed: &[usize]) {
    for (i, site) in sites.iter_mut().enumerate() {
        let place = graph.producer(site.out).map_or(0, |(id, _)| places[&id]);
        site.layer = i + missed.partition_point(|m| *m < place);
    }
}

/// Sites whose names say nothing, or the same, are numbered.
fn tell_apart(sites: &mut [AttentionSite]) {
    let mut twins: BTreeMap<String, usize> = BTreeMap::new();
    sites.iter().for_each(|site| *twins.entry(site.name.clone()).or_default() += 1);
    for site in sites {
        if site.name.is_empty() {
            site.name = format!("attention.{}", site.layer);
        } else if twins[&site.name] > 1 {
            site.name = format!("{}.{}", site.name, site.layer);
        }
    }
}

/// A pattern and what it looks for.
struct Tried {
    pattern: &'static dyn AttentionPattern,
    shape: Pat,
}

/// What the patterns say of the values they do not match at, or that are no site where they do.
struct Failed<'p> {
    /// Of every node in the order of the graph.
    places: &'p BTreeMap<NodeId, usize>,
    tried: Vec<Tried>,
    refused: BTreeMap<ValueId, Vec<(&'static str, Miss)>>,
}

impl Failed<'_> {
    /// Of the patterns tried a few steps after a softmax, the one that got furthest; of two, the later in the graph.
    fn closest(&self, graph: &Graph, softmax: NodeId) -> Option<NearMiss> {
        let softmax = graph.node(softmax);
        let near = nearest_first(softmax.outputs[0], STEPS_AFTER, |v| outputs_after(graph, v));
        let place =
            |value| graph.producer(value).filter(|(_, output)| *output == 0).map(|(id, _)| self.places[&id]);
        let values: BTreeMap<usize, ValueId> = near.filter_map(|v| Some((place(v)?, v))).collect();
        let misses = values.into_values().flat_map(|value| self.at(graph, value));
        let (pattern, miss) = misses.max_by_key(|(_, miss)| (miss.stage, miss.matched))?;
        Some(NearMiss { node: softmax.name.clone(), pattern, miss, is_attention: false })
    }

    fn at(&self, graph: &Graph, value: ValueId) -> Vec<(&'static str, Miss)> {
        let differs =
            |Tried { pattern, shape }: &Tried| Some((pattern.name(), find(graph, shape, value).err()?));
        let refused = self.refused.get(&value).into_iter().flatten().cloned();
        self.tried.iter().filter_map(differs).chain(refused).collect()
    }
}

/// How far after a softmax the value stands that a pattern was tried at.
const STEPS_AFTER: usize = 4;

#[cfg(test)]
mod tests {
    use super::{PATTERNS, find_sites};
    use crate::canon::canonicalize;
    use crate::ir::text::parse;
    use crate::testing::file_stems;

    /// Why the attention of `text` is not taken apart.
    fn kept(text: &str) -> String {
        let mut graph = parse(text).expect("it parses");
        canonicalize(&mut graph).expect("it settles");
        find_sites(&graph).misses.remove(0).miss.reason
    }

    #[test]
    fn an_attention_operator_is_told_with_what_is_in_the_way() {
        let text = r#"graph "g" {
  input %x: f32[batch, time, 32]
  const %counts: i32[2] = [4, 4]
  const %total: i32[] = [5]
  %y, %k, %v = com.microsoft.GroupQueryAttention(%x, _, _, _, _, %counts, %total) {num_heads: 2, kv_num_heads: 1, OPTION}
  output "y" %y
}"#;
        for (option, name) in [
            ("smooth_softmax: 1", "smooth_softmax"),
            (
                "local_window_size: 3, sliding_window_cache: 1",
                "sliding_window_cache, a cache that holds no more than a window,",
            ),
            ("local_window_size: 0", "local_window_size, a window of another kind,"),
        ] {
            let want = format!(
                "operator com.microsoft.GroupQueryAttention could not be taken apart: {name} is not known"
            );
            assert_eq!(kept(&text.replace("OPTION", option)), want);
        }
        let made = text
            .replace("  %y,", "  %z = com.example.Project(%x) \"project\"\n  %y,")
            .replace("(%x, _, _,", "(%z, _, _,")
            .replace(", OPTION", "");
        let reason = kept(&made);
        assert!(
            reason.contains("as operator com.example.Project, node \"project\", is not known"),
            "{reason}"
        );
    }

    #[test]
    fn every_file_is_in_the_table() {
        let names: Vec<&str> = PATTERNS.iter().map(|pattern| pattern.name()).collect();
        assert_eq!(file_stems("src/attention/patterns"), names);
    }
}
