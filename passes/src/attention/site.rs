//! The canonical attention site, whatever operators an exporter spelled it with.

use super::mask::Mask;
use crate::ir::graph::{Def, Graph, Node, Use, ValueId};
use crate::ir::infer::resolve_axis;
use crate::ir::shape::{Dim, show};
use crate::ir::walk::{depth_first, inputs_of, nearest_first};
use crate::pattern::Miss;
use dijiang_format::dtype::DType;

/// One softmax attention: o = softmax(scale · q kᵀ + mask) v, per head.
#[derive(Debug, Clone)]
pub struct AttentionSite {
    /// The module it belongs to, such as `model.layers.0.self_attn`.
    pub name: String,
    /// Which of the graph's attentions it is, counted from 0 in the order they are computed; those that were missed
    /// count too. States and outputs of a layer are named by it.
    pub layer: usize,
    /// Queries `[batch, heads, sequence, head_dim]`, after rotary embedding and normalisation.
    pub q: ValueId,
    /// New keys `[batch, kv_heads, sequence, head_dim]`, without the past and before they are repeated.
    pub k: ValueId,
    /// New values `[batch, kv_heads, sequence, value_dim]`.
    pub v: ValueId,
    /// What the site computes, `[batch, heads, sequence, value_dim]`.
    pub out: ValueId,
    pub scale: f64,
    /// c, where a score x becomes c · tanh(x / c) before the mask.
    pub softcap: Option<f64>,
    pub mask: Mask,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub value_dim: u64,
    /// The hidden state the values are projected from; learned gates read it.
    pub hidden: Option<Hidden>,
    pub rotary: bool,
    pub cache: Option<Cache>,
}

/// The key/value cache of a site: it grows by the new tokens.
#[derive(Debug, Clone)]
pub struct Cache {
    pub past_key: ValueId,
    pub past_value: ValueId,
    /// Names of the graph outputs.
    pub present_key: String,
    pub present_value: String,
}

/// Keys or values traced back through what decoders wrap around them.
#[derive(Debug, Clone)]
pub struct Stream {
    /// `[batch, kv_heads, sequence, dim]`
    pub new: ValueId,
    /// The graph input with the past, and the name of the graph output with past and new.
    pub cache: Option<(ValueId, String)>,
}

/// Undoes the repetition over query heads (`Unsqueeze`, `Expand`, `Reshape`) and the cache `Concat`.
pub fn trace_stream(graph: &Graph, value: ValueId) -> Result<Stream, Miss> {
    let whole = before_repeat(graph, value)?;
    // Other joins, such as of rotated and plain parts of a head, make new keys.
    let concat = graph.made_by(whole, "Concat");
    let past = concat.and_then(|n| past_of(graph, n.input(0)?));
    let (Some(concat), Some(past)) = (concat, past) else {
        return Ok(Stream { new: whole, cache: None });
    };
    let name = &graph.value(whole).name;
    let (Some(new), 2) = (concat.input(1), concat.inputs.len()) else {
        return Err(Miss::check(name, "a cache joins the past and the new, not more"));
    };
    if !matches!(concat.op.int("axis"), Some(2 | -2)) {
        return Err(Miss::check(name, format!("a cache grows along axis 2, found {:?}", concat.op.attrs)));
    }
    let Some((present, _)) = present_slot(graph, whole).and_then(|slot| graph.outputs().get(slot)) else {
        return Err(Miss::check(name, "the cache is not a graph output"));
    };
    Ok(Stream { new, cache: Some((past, present.clone())) })
}

/// The graph input that a value is, itself or cast: graphs of half precision may carry their caches in f32.
pub(crate) fn past_of(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let given = graph.made_by(value, "Cast").map_or(Some(value), |cast| cast.input(0))?;
    matches!(graph.value(given).def, Def::Input).then_some(given)
}

/// Which graph output a value is, itself or cast.
pub(crate) fn present_slot(graph: &Graph, value: ValueId) -> Option<usize> {
    let slot = |user: &Use| match user {
        Use::GraphOutput(slot) => Some(*slot as usize),
        Use::Node { .. } => None,
    };
    let slots_of = |value: ValueId| graph.value(value).uses.iter().filter_map(slot).min();
    let casts = graph.value(value).uses.iter().filter_map(|user| match user {
        Use::Node { node, .. } => Some(graph.node(*node)).filter(|node| node.op.is("Cast")),
        Use::GraphOutput(_) => None,
    });
    slots_of(value).or_else(|| casts.filter_map(|cast| slots_of(cast.outputs[0])).min())
}

fn before_repeat(graph: &Graph, value: ValueId) -> Result<ValueId, Miss> {
    let Some((inner, between)) = repeated(graph, value) else { return Ok(value) };
    let shape = |v: ValueId| graph.value(v).ty.shape.clone().unwrap_or_default();
    let known = |v: ValueId, axis: usize| shape(v).get(axis).and_then(Dim::known);
    let group = known(between, 2);
    let heads = known(inner, 1).zip(group).map(|(kv_heads, group)| kv_heads * group);
    let repeats = known(between, 1) == known(inner, 1)
        && known(between, 4) == known(inner, 3)
        && known(value, 3) == known(inner, 3)
        && heads.is_some()
        && known(value, 1) == heads;
    if repeats {
        return Ok(inner);
    }
    let reason = unfollowed(graph, value).unwrap_or_else(|| {
        let [from, over, to] = [inner, between, value].map(|v| show(&shape(v)));
        format!("heads are spread from {from} over {over} to {to}, expected each repeated")
    });
    Err(Miss::check(&graph.value(value).name, reason))
}

/// Why the dims of a value are not known: what computes it, near or far, is an operator of which nothing is known.
pub(super) fn unfollowed(graph: &Graph, value: ValueId) -> Option<String> {
    let is_followed = |v: ValueId| {
        let shape = graph.value(v).ty.shape.as_ref();
        shape.is_some_and(|dims| !dims.contains(&Dim::Unknown))
    };
    let before = |v: ValueId| if is_followed(v) { Vec::new() } else { inputs_of(graph, v) };
    let mut makers = depth_first(value, before).filter_map(|v| Some(graph.node(graph.producer(v)?.0)));
    let unknown = makers.find(|node| node.op.spec().is_none())?;
    let (op, name) = (unknown.op.qualified_name(), &unknown.name);
    Some(format!("its shape is not known, as operator {op}, node {name:?}, is not known"))
}

/// `x` and the expanded value in `Reshape(Expand(Unsqueeze(x, axis 2)))`: each key/value head repeated
/// for its query heads.
fn repeated(graph: &Graph, value: ValueId) -> Option<(ValueId, ValueId)> {
    let expanded = graph.made_by(value, "Reshape")?.input(0)?;
    let unsqueezed = graph.made_by(expanded, "Expand")?.input(0)?;
    let node = graph.made_by(unsqueezed, "Unsqueeze")?;
    (node.op.ints("axes") == Some(&[2])).then(|| Some((node.input(0)?, expanded)))?
}

/// New keys or values must be of the queries' own tokens: anything else is a past that was not
/// recognised, or another sequence.
pub fn check_tokens(graph: &Graph, q: ValueId, new: ValueId) -> Result<(), Miss> {
    let tokens = |v: ValueId| graph.value(v).ty.shape.as_ref().and_then(|s| s.get(2)).cloned();
    match (tokens(q), tokens(new)) {
        (Some(a), Some(b)) if a == b && a != Dim::Unknown => Ok(()),
        (a, b) => {
            let unfollowed = unfollowed(graph, new).or_else(|| unfollowed(graph, q));
            let reason = unfollowed.unwrap_or_else(|| other_keys(a.as_ref(), b.as_ref()));
            Err(Miss::check(&graph.value(new).name, reason))
        }
    }
}

/// What is said of keys that are not those of the queries' tokens.
fn other_keys(queries: Option<&Dim>, keys: Option<&Dim>) -> String {
    let text = |d: Option<&Dim>| match d {
        None | Some(Dim::Unknown) => "an unknown number of".to_owned(),
        Some(dim) => dim.to_string(),
    };
    match (queries, keys) {
        (Some(Dim::Sym(_)), Some(Dim::Known(keys))) => format!(
            "every call attends over {keys} keys, however many tokens it has: they are of another sequence, or the export fixed the length of its example"
        ),
        (queries, keys) => format!(
            "{} queries attend over {} keys, which are neither those of the same tokens nor a cache that grows by them",
            text(queries),
            text(keys)
        ),
    }
}

/// A hidden state, `[batch, sequence, hidden]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hidden {
    pub value: ValueId,
    /// `[sequence, batch, hidden]` in its place.
    pub tokens_first: bool,
}

/// The projection a head layout was cut from: the weight's name and the hidden state it was applied to.
#[derive(Debug, Clone)]
pub struct Projection {
    pub weight: String,
    pub hidden: Hidden,
}

/// Operators that only move, split or shift what a projection gave.
const TRANSPARENT: [&str; 11] = [
    "Reshape",
    "Transpose",
    "Split",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Add",
    "Cast",
    "Identity",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// Walks back from values `[batch, kv_heads, sequence, value_dim]` to the linear layer that made them.
pub fn trace_projection(graph: &Graph, value: ValueId) -> Option<Projection> {
    let maker = |v: ValueId| graph.producer(v).map(|(id, _)| graph.node(id));
    let [batch, _, tokens, _] = graph.value(value).ty.shape.as_deref()? else { return None };
    let before = |v: ValueId| match maker(v) {
        Some(node) if TRANSPARENT.contains(&node.op.name()) => inputs_of(graph, v),
        Some(node) if picks_heads(graph, node, tokens) || is_rescaled(graph, node) => inputs_of(graph, v),
        Some(node) if repeats_heads(graph, node, tokens) => node.input(0).into_iter().collect(),
        _ => Vec::new(),
    };
    let found = depth_first(value, before).find_map(|v| projection_at(graph, maker(v)?))?;
    let hidden = by_row(graph, found.hidden.value, [batch, tokens])?;
    Some(Projection { hidden, ..found })
}

/// The hidden state, with what is in front.
fn by_row(graph: &Graph, hidden: ValueId, [batch, tokens]: [&Dim; 2]) -> Option<Hidden> {
    let leads = |v: ValueId, dims: [&Dim; 2]| {
        let shape = graph.value(v).ty.shape.as_deref();
        matches!(shape, Some([a, b, _]) if [a, b] == dims && dims.iter().all(|dim| **dim != Dim::Unknown))
    };
    let is_turned = |v| graph.made_by(v, "Transpose").is_some_and(|n| n.op.ints("perm") == Some(&[1, 0, 2]));
    let tokens_first = leads(hidden, [tokens, batch]);
    // Of as many rows as tokens it is not known which is which.
    match tokens_first && batch == tokens {
        true => (!is_turned(hidden)).then_some(Hidden { value: hidden, tokens_first: false }),
        false => Some(Hidden { value: hidden, tokens_first }),
    }
}

/// Whether a node takes always the same parts of what was projected for each token, as where one weight makes queries, keys
/// and values. Those of other tokens would not be the token's own.
fn picks_heads(graph: &Graph, node: &Node, tokens: &Dim) -> bool {
    let Some(shape) = node.input(0).and_then(|x| graph.value(x).ty.shape.as_deref()) else { return false };
    let axis = node.op.int("axis").and_then(|axis| resolve_axis(axis, shape.len()).ok());
    let is_fixed = node.input(1).is_some_and(|indices| graph.as_const(indices).is_some());
    let is_beside_tokens =
        |axis: usize| shape[axis].known().is_some() && shape[axis] != *tokens && shape.contains(tokens);
    node.op.is("Gather") && is_fixed && axis.is_some_and(|axis| axis >= 2 || is_beside_tokens(axis))
}

/// Whether a node repeats heads, and not one token for all.
fn repeats_heads(graph: &Graph, node: &Node, tokens: &Dim) -> bool {
    let shape = |v: Option<ValueId>| graph.value(v?).ty.shape.as_deref();
    let (Some(from), Some(to)) = (shape(node.input(0)), shape(node.outputs.first().copied())) else {
        return false;
    };
    let is_spread = |(from, to): (&Dim, &Dim)| from != to && to == tokens;
    node.op.is("Expand") && from.len() == to.len() && !from.iter().zip(to).any(is_spread)
}

/// Whether a node multiplies by numbers that are the same for all tokens: a product of whole numbers becomes one of floats
/// by those.
fn is_rescaled(graph: &Graph, node: &Node) -> bool {
    let is_for_all = |v: &ValueId| graph.value(*v).ty.rank().is_some_and(|rank| rank < 2);
    node.op.is("Mul") && node.inputs.iter().flatten().any(is_for_all)
}

/// Products with a weight: of floats, with a weight in blocks of few bits, and of whole numbers.
const LINEAR: [(&str, &str); 4] =
    [("", "MatMul"), ("com.microsoft", "MatMulNBits"), ("", "MatMulInteger"), ("", "QLinearMatMul")];

/// What rounds the other factor of a product of whole numbers.
const ROUNDING: [&str; 2] = ["DynamicQuantizeLinear", "QuantizeLinear"];

fn projection_at(graph: &Graph, node: &Node) -> Option<Projection> {
    let is_linear = LINEAR.contains(&(node.op.domain(), node.op.name()));
    let slot = if node.op.is("QLinearMatMul") { 3 } else { 1 };
    let weight = weight_name(graph, node.input(slot).filter(|_| is_linear)?)?;
    let given = node.input(0)?;
    let rounding = ROUNDING.iter().find_map(|op| graph.made_by(given, op));
    let hidden = rounding.map_or(Some(given), |rounding| rounding.input(0))?;
    let is_float = graph.value(hidden).ty.dtype.is_some_and(DType::is_float);
    is_float.then_some(Projection { weight, hidden: Hidden { value: hidden, tokens_first: false } })
}

/// What a weight is read through: a transpose, another element type, its zero points and its scale.
const AROUND_WEIGHTS: [&str; 4] = ["Transpose", "Cast", "Sub", "DequantizeLinear"];

/// The name of a constant, read directly or through what stands around weights.
fn weight_name(graph: &Graph, value: ValueId) -> Option<String> {
    let found = graph.value(value);
    if found.as_const().is_some() {
        return Some(found.name.clone());
    }
    let node = AROUND_WEIGHTS.iter().find_map(|op| graph.made_by(value, op))?;
    weight_name(graph, node.input(0)?)
}

/// What a site is called: the module of the weight that makes its values, or the path in the name of the
/// value it computes, or nothing.
pub fn name_of(graph: &Graph, projection: Option<&Projection>, out: ValueId) -> String {
    let module = projection.map(|p| module_of(&p.weight)).filter(|m| m.contains('.'));
    module.unwrap_or_else(|| {
        let path = graph.value(out).name.trim_start_matches('/');
        path.rsplit_once('/').map_or_else(String::new, |(parent, _)| parent.replace('/', "."))
    })
}

/// The module of a weight: `model.layers.0.self_attn` for `model.layers.0.self_attn.v_proj.weight`.
pub fn module_of(weight: &str) -> String {
    let parts: Vec<&str> = weight.split('.').collect();
    parts[..parts.len().saturating_sub(2)].join(".")
}

/// Whether sines and cosines of positions went into a value.
pub fn is_rotary(graph: &Graph, value: ValueId) -> bool {
    let made_by = |v: ValueId, name: &str| graph.made_by(v, name).is_some();
    let before = |v: ValueId| if made_by(v, "MatMul") { Vec::new() } else { inputs_of(graph, v) };
    nearest_first(value, ROTARY_STEPS, before).any(|v| made_by(v, "Cos") || made_by(v, "Sin"))
}

/// Nodes between a rotated value and the sines and cosines at most.
const ROTARY_STEPS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_weights() {
        assert_eq!(module_of("model.layers.0.self_attn.v_proj.weight"), "model.layers.0.self_attn");
        assert_eq!(module_of("w"), "");
        assert_eq!(module_of("onnx::MatMul_12"), "");
    }
}
