//! Matches: `MatMul(Softmax(f(MatMul(q, kᵀ))), v)`, whatever f does to scale and mask the scores, with or
//! without casts around the softmax, and with a guard that turns NaN to zero after it.
//! Declines when: f is not a scale, with or without a soft cap, and a causal or padding mask (it is evaluated to see), the
//! probabilities have another user, keys are neither the queries' own tokens nor a cache of them, or the
//! heads are not on axis 1.

use super::{AttentionPattern, KnownScores};
use crate::attention::mask::Scores;
use crate::attention::site::{self, AttentionSite, Cache, Stream};
use crate::ir::graph::{Graph, Node, Use, Value, ValueId};
use crate::ir::shape::show;
use crate::ir::walk::{depth_first, inputs_of, nearest_first};
use crate::pattern::{Match, Miss, Pat};

pub(super) struct Decomposed;

impl AttentionPattern for Decomposed {
    fn name(&self) -> &'static str {
        "decomposed"
    }

    fn pattern(&self) -> Pat {
        let softmax = Pat::op("Softmax", [Pat::var("scores")]).bind("probabilities");
        let guarded = Pat::op("Where", [Pat::op("IsNaN", [softmax.clone()]), Pat::Scalar, softmax.clone()]);
        let probabilities =
            Pat::one_of([("guarded", guarded), ("plain", softmax)]).maybe_cast().bind("weights");
        Pat::op("MatMul", [probabilities, Pat::var("v")]).bind("out")
    }

    fn site(&self, graph: &Graph, found: &Match, known: &mut KnownScores) -> Result<AttentionSite, Miss> {
        let get = |name: &str| {
            found.get(name).ok_or_else(|| Miss::check("", format!("the pattern does not bind `{name}`")))
        };
        let (out, scores) = (get("out")?, get("scores")?);
        check_softmax(graph, found)?;
        let Scored { product, q, k } = product_of(graph, scores)?;
        let key = site::trace_stream(graph, k)?;
        let value = site::trace_stream(graph, get("v")?)?;
        site::check_tokens(graph, q, key.new)?;
        site::check_tokens(graph, q, value.new)?;
        let [heads, head_dim] = heads_of(graph, q)?;
        let [kv_heads, key_dim] = heads_of(graph, key.new)?;
        let [value_heads, value_dim] = heads_of(graph, value.new)?;
        let name = |v: ValueId| graph.value(v).name.clone();
        if (kv_heads, key_dim) != (value_heads, head_dim) || heads % kv_heads != 0 {
            let reason = format!(
                "{heads} query heads of {head_dim}, {kv_heads} key heads of {key_dim} and {value_heads} value heads do not fit"
            );
            return Err(Miss::check(name(out), reason));
        }
        let Scores { scale, softcap, mask } = known.classify(graph, scores, product, key.cache.is_some())?;
        let projection = site::trace_projection(graph, value.new);
        Ok(AttentionSite {
            name: site::name_of(graph, projection.as_ref(), out),
            // `find_sites` numbers them.
            layer: 0,
            q,
            k: key.new,
            v: value.new,
            out,
            scale,
            softcap,
            mask,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            hidden: projection.map(|p| p.hidden),
            rotary: site::is_rotary(graph, q),
            cache: cache_of(graph, key, value)?,
        })
    }
}

/// What is said of attention weights that more than the product with the values reads.
fn other_readers(graph: &Graph, weights: &Value) -> String {
    let output = weights.uses.iter().find_map(|user| match user {
        Use::GraphOutput(slot) => graph.outputs().get(*slot as usize),
        Use::Node { .. } => None,
    });
    match output {
        Some((name, _)) => {
            format!("its attention weights are the output {name:?} too, and a linear attention has none")
        }
        None => format!(
            "{} nodes read its attention weights, expected the product with the values alone",
            weights.uses.len()
        ),
    }
}

fn check_softmax(graph: &Graph, found: &Match) -> Result<(), Miss> {
    let (Some(probabilities), Some(weights)) = (found.get("probabilities"), found.get("weights")) else {
        return Err(Miss::check("", "the pattern binds no probabilities"));
    };
    // A guard reads the probabilities twice itself.
    let own = if found.has_tag("guarded") { 2 } else { 1 };
    for (value, allowed) in [(probabilities, own), (weights, 1)] {
        let value = graph.value(value);
        if value.uses.len() > allowed && !(found.has_tag("guarded") && value.uses.len() == own) {
            return Err(Miss::check(&value.name, other_readers(graph, value)));
        }
    }
    let value = graph.value(probabilities);
    let axis = graph.made_by(probabilities, "Softmax").and_then(|node| node.op.int("axis"));
    match (axis, value.ty.rank()) {
        (Some(-1), _) => Ok(()),
        (Some(axis), Some(rank)) if axis == rank as i64 - 1 => Ok(()),
        (axis, _) => {
            let axis = axis.map_or_else(|| "?".to_owned(), |axis| axis.to_string());
            Err(Miss::check(&value.name, format!("the softmax runs over axis {axis}, expected the last")))
        }
    }
}

/// The product q kᵀ that the scores are computed from.
struct Scored {
    product: ValueId,
    q: ValueId,
    /// Before it is transposed.
    k: ValueId,
}

/// Operators that may stand between q kᵀ and the softmax.
const BETWEEN: [&str; 11] =
    ["Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Cast", "Reshape", "Identity", "Tanh"];

fn product_of(graph: &Graph, scores: ValueId) -> Result<Scored, Miss> {
    let name = |v: ValueId| graph.value(v).name.clone();
    let maker = |v: ValueId| graph.producer(v).map(|(id, _)| graph.node(id));
    let before = |v: ValueId| match maker(v) {
        Some(node) if BETWEEN.contains(&node.op.name()) => inputs_of(graph, v),
        _ => Vec::new(),
    };
    let reached: Vec<(ValueId, &Node)> =
        depth_first(scores, before).filter_map(|v| Some((v, maker(v)?))).collect();
    let found: Vec<&(ValueId, &Node)> = reached.iter().filter(|(_, node)| node.op.is("MatMul")).collect();
    let [(product, node)] = found.as_slice() else {
        let reason = match found.len() {
            0 => between(graph, &reached),
            n => format!("{n} products are summed up in the scores, expected one of queries and keys"),
        };
        return Err(Miss::check(name(scores), reason));
    };
    let (Some(q), Some(transposed)) = (node.input(0), node.input(1)) else {
        return Err(Miss::check(name(*product), "a product of two values was expected"));
    };
    match graph.made_by(transposed, "Transpose") {
        Some(node) if node.op.ints("perm") == Some(&[0, 1, 3, 2]) => {
            let k = node.input(0).unwrap_or(transposed);
            Ok(Scored { product: *product, q, k })
        }
        _ => Err(Miss::check(name(transposed), unlike_keys(graph, transposed))),
    }
}

/// What stands between the softmax and the product of queries and keys: the first operator that is not known there and
/// reads a product.
fn between(graph: &Graph, reached: &[(ValueId, &Node)]) -> String {
    let is_product = |v: ValueId| PRODUCTS.iter().any(|op| graph.made_by(v, op).is_some());
    let reads_product = |node: &Node| {
        let near = node.inputs.iter().flatten();
        near.flat_map(|v| nearest_first(*v, STEPS_BEFORE, |v| inputs_of(graph, v))).any(is_product)
    };
    let unknown = reached.iter().map(|(_, node)| node).filter(|node| !BETWEEN.contains(&node.op.name()));
    match unknown.into_iter().find(|node| reads_product(node)) {
        Some(node) => format!(
            "operator {}, node {:?}, stands between the product of queries and keys and the softmax, and is not known there",
            node.op.qualified_name(),
            node.name
        ),
        None => "no product of queries and keys goes into the softmax".to_owned(),
    }
}

/// What queries and keys are multiplied by, where exporters do not take a plain product.
const PRODUCTS: [&str; 2] = ["MatMul", "Einsum"];
/// Nodes between an operator that is not known there and a product at most.
const STEPS_BEFORE: usize = 4;

/// Why what the queries are multiplied with are no keys by head.
fn unlike_keys(graph: &Graph, keys: ValueId) -> String {
    let shape = graph.value(keys).ty.shape.as_deref().unwrap_or_default();
    site::unfollowed(graph, keys).unwrap_or_else(|| {
        let found = show(shape);
        format!("the queries are multiplied with {found}, expected keys as [batch, heads, dim, keys], turned from [batch, heads, keys, dim]")
    })
}

/// `[heads, dim]` of `[batch, heads, sequence, dim]`.
fn heads_of(graph: &Graph, id: ValueId) -> Result<[u64; 2], Miss> {
    let value = graph.value(id);
    let shape = value.ty.shape.as_deref().unwrap_or_default();
    let known = match shape {
        [_, heads, _, dim] => heads.known().zip(dim.known()),
        _ => None,
    };
    known.map(|(heads, dim)| [heads, dim]).ok_or_else(|| {
        let reason = site::unfollowed(graph, id).unwrap_or_else(|| {
            format!("expected [batch, heads, sequence, dim] with known heads and dim, found {}", show(shape))
        });
        Miss::check(&value.name, reason)
    })
}

fn cache_of(graph: &Graph, key: Stream, value: Stream) -> Result<Option<Cache>, Miss> {
    match (key.cache, value.cache) {
        (None, None) => Ok(None),
        (Some((past_key, present_key)), Some((past_value, present_value))) => {
            Ok(Some(Cache { past_key, past_value, present_key, present_value }))
        }
        _ => {
            let name = &graph.value(key.new).name;
            Err(Miss::check(name, "only one of keys and values has a cache"))
        }
    }
}
