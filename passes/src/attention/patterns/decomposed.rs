//! Matches: `MatMul(Softmax(scale · MatMul(q, kᵀ) [+ mask]), v)` spelled in plain operators, with
//! or without a cast to f32 around the softmax, as our model families and most exporters write it.
//! Declines when: the scale is no constant, the mask is neither causal nor padding, the
//! probabilities have another user, or the heads are not on axis 1.

use super::AttentionPattern;
use crate::attention::mask::{Mask, classify};
use crate::attention::site::{self, AttentionSite, Cache, Stream};
use crate::ir::graph::{Graph, ValueId};
use crate::ir::shape::show;
use crate::pattern::{Match, Miss, Pat};

pub(super) struct Decomposed;

impl AttentionPattern for Decomposed {
    fn name(&self) -> &'static str {
        "decomposed"
    }

    fn pattern(&self) -> Pat {
        let turned = Pat::op("Transpose", [Pat::var("k")]).with_ints("perm", &[0, 1, 3, 2]);
        let products = Pat::op("MatMul", [Pat::var("q"), turned]).maybe_cast();
        let scaled = Pat::one_of([
            ("mul", Pat::op("Mul", [products.clone(), Pat::var("scale")])),
            ("div", Pat::op("Div", [products.clone(), Pat::var("scale")])),
            ("unscaled", products),
        ])
        .maybe_cast();
        let scores = Pat::one_of([
            ("masked", Pat::op("Add", [scaled.clone(), Pat::var("mask")])),
            ("unmasked", scaled),
        ]);
        let probabilities = Pat::op("Softmax", [scores]).bind("probabilities").maybe_cast();
        Pat::op("MatMul", [probabilities, Pat::var("v")]).bind("out")
    }

    fn site(&self, graph: &Graph, found: &Match) -> Result<AttentionSite, Miss> {
        let get = |name: &str| {
            found.get(name).ok_or_else(|| Miss::check("", format!("the pattern does not bind `{name}`")))
        };
        let (q, out, probabilities) = (get("q")?, get("out")?, get("probabilities")?);
        check_softmax(graph, probabilities)?;
        let key = site::trace_stream(graph, get("k")?)?;
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
        let scale = scale_of(graph, found)?;
        let cached = key.cache.is_some();
        let mask = found.get("mask").map_or(Ok(Mask::None), |bias| classify(graph, bias, cached))?;
        let projection = site::trace_projection(graph, value.new);
        Ok(AttentionSite {
            name: projection.as_ref().map_or_else(|| name(out), |p| site::module_of(&p.weight)),
            q,
            k: key.new,
            v: value.new,
            out,
            scale,
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

fn check_softmax(graph: &Graph, probabilities: ValueId) -> Result<(), Miss> {
    let value = graph.value(probabilities);
    if value.uses.len() > 1 {
        let reason = format!("the probabilities have {} users", value.uses.len());
        return Err(Miss::check(&value.name, reason));
    }
    let axis = graph.made_by(probabilities, "Softmax").and_then(|n| n.op.int("axis"));
    match axis {
        Some(-1 | 3) => Ok(()),
        other => {
            Err(Miss::check(&value.name, format!("the softmax runs over axis {other:?}, expected the last")))
        }
    }
}

/// `[heads, dim]` of `[batch, heads, sequence, dim]`.
fn heads_of(graph: &Graph, value: ValueId) -> Result<[u64; 2], Miss> {
    let value = graph.value(value);
    let shape = value.ty.shape.as_deref().unwrap_or_default();
    let known = match shape {
        [_, heads, _, dim] => heads.known().zip(dim.known()),
        _ => None,
    };
    known.map(|(heads, dim)| [heads, dim]).ok_or_else(|| {
        let reason =
            format!("expected [batch, heads, sequence, dim] with known heads and dim, found {}", show(shape));
        Miss::check(&value.name, reason)
    })
}

fn scale_of(graph: &Graph, found: &Match) -> Result<f64, Miss> {
    let Some(value) = found.get("scale").filter(|_| !found.has_tag("unscaled")) else { return Ok(1.0) };
    let Some(scale) = graph.as_scalar(value) else {
        return Err(Miss::check(&graph.value(value).name, "the scale is no constant"));
    };
    let scale = if found.has_tag("div") { scale.recip() } else { scale };
    if scale.is_finite() && scale > 0.0 {
        return Ok(scale);
    }
    Err(Miss::check(&graph.value(value).name, format!("the scale is {scale}, expected a positive number")))
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
