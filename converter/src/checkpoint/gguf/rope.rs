//! The rotary settings of a GGUF file, as a config has them.

use super::config::Draft;
use super::elements::{self, Change};
use super::error::GgufError;
use super::value::shortest;
use crate::checkpoint::error::CheckpointError;
use dijiang_passes::ir::tensor::SharedBytes;
use serde_json::{Map, Value as Json, json};

/// How many features of a head are rotated: a key of architectures that may rotate a part.
pub(super) const SHARE: &str = "rope.dimension_count";
const THETA: &str = "rope.freq_base";
/// What frequencies are divided by, one for each pair.
const FREQUENCIES: &str = "rope_freqs.weight";
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";
const ORIGINAL: &str = "original_max_position_embeddings";
const HINT: &str = "no family here rotates so; convert another model";

pub(super) fn describe(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    if let Some(theta) = draft.number(THETA)? {
        draft.set("rope_theta", json!(theta));
    }
    share(draft)?;
    let scaling = scaling(draft)?;
    if !scaling.is_empty() {
        draft.set("rope_scaling", Json::Object(scaling));
    }
    Ok(())
}

fn share(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    let (rotated, head_dim) = (draft.count(SHARE)?, draft.head_dim());
    let rotated_of = rotated.unwrap_or(head_dim);
    if draft.architecture.keys.iter().any(|key| key.gguf == SHARE) {
        draft.set("partial_rotary_factor", json!(ratio(rotated_of, head_dim)));
        return Ok(());
    }
    if rotated_of == head_dim {
        return Ok(());
    }
    let key = draft.key(SHARE);
    let found = draft.header.values.get(&key).cloned();
    let found = found.unwrap_or(super::value::Value::Int(rotated_of.into()));
    Err(draft.header.refused(&key, &found, &format!("{head_dim}, all features of a head"), HINT))
}

/// The share that gives back so many of them, however it is rounded.
fn ratio(part: u64, whole: u64) -> f64 {
    let ratio = part as f64 / whole.max(1) as f64;
    if ((whole as f64 * ratio) as u64) < part { ratio.next_up() } else { ratio }
}

/// `rope_scaling`, empty where there is none.
fn scaling(draft: &mut Draft<'_>) -> Result<Map<String, Json>, CheckpointError> {
    let key = draft.key("rope.scaling.type");
    let kind = draft.header.text(&key)?;
    let factor = draft.number("rope.scaling.factor")?;
    let older = draft.number("rope.scale_linear")?;
    let original = draft.count("rope.scaling.original_context_length")?;
    let factors = draft.number("rope.scaling.attn_factor")?;
    let yarn = yarn(draft)?;
    let mut out = Map::new();
    let kind = match (kind, older) {
        (Some("none") | None, _) if draft.header.has(SHORT) => "longrope",
        (None, Some(older)) if older != 1.0 => "linear",
        (kind, _) => kind.unwrap_or("none"),
    };
    match kind {
        "none" => {
            if let Some(list) = list(draft, FREQUENCIES)? {
                // As llama.cpp writes the frequencies of Llama 3: it divides by each, whatever the length of the text.
                insert(&mut out, "rope_type", json!("longrope"));
                insert(&mut out, "short_factor", list.clone());
                insert(&mut out, "long_factor", list);
                insert(&mut out, ORIGINAL, json!(draft.size(draft.architecture.sizes.positions)));
                insert(&mut out, "attention_factor", json!(1.0));
            }
            return Ok(out);
        }
        "linear" => {
            insert(&mut out, "factor", json!(factor.or(older)));
        }
        "yarn" => {
            insert(&mut out, "factor", json!(factor));
            insert(&mut out, ORIGINAL, json!(original));
            out.extend(yarn);
        }
        "longrope" => {
            insert(&mut out, "short_factor", json!(list(draft, SHORT)?));
            insert(&mut out, "long_factor", json!(list(draft, LONG)?));
            insert(&mut out, ORIGINAL, json!(original));
            insert(&mut out, "attention_factor", json!(factors));
        }
        other => {
            let found = super::value::Value::Text(other.to_owned());
            return Err(draft.header.refused(&key, &found, "none, linear, yarn or longrope", HINT));
        }
    }
    insert(&mut out, "rope_type", json!(kind));
    Ok(out)
}

fn insert(out: &mut Map<String, Json>, key: &str, value: Json) {
    if !value.is_null() {
        out.insert(key.to_owned(), value);
    }
}

/// What YaRN has beside a factor.
fn yarn(draft: &mut Draft<'_>) -> Result<Map<String, Json>, CheckpointError> {
    let mut out = Map::new();
    for (name, config) in
        [("attn_factor", "attention_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")]
    {
        let found = draft.number(&format!("rope.scaling.yarn_{name}"))?;
        insert(&mut out, config, json!(found));
    }
    for (name, usual) in [("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)] {
        let name = format!("rope.scaling.{name}");
        let found = draft.number(&name)?;
        if let Some(found) = found.filter(|x| *x != usual) {
            let (key, found) = (draft.key(&name), super::value::Value::Float(found));
            return Err(draft.header.refused(&key, &found, &usual.to_string(), HINT));
        }
    }
    Ok(out)
}

/// The numbers of a small tensor.
fn list(draft: &Draft<'_>, name: &str) -> Result<Option<Json>, CheckpointError> {
    const MOST: usize = 1 << 16;
    let Some(raw) = draft.header.tensors.get(name) else { return Ok(None) };
    let file: &SharedBytes = &draft.header.bytes;
    let tensor = elements::tensor(file, raw, raw.dims.clone(), Change::NONE);
    let tensor = tensor.filter(|tensor| tensor.dims().len() == 1 && tensor.len() <= MOST);
    let numbers = tensor.map(|tensor| tensor.to_f32()).unwrap_or_default();
    if numbers.is_empty() || numbers.iter().any(|x| !x.is_finite() || *x <= 0.0) {
        let problem = "is no list of positive numbers".to_owned();
        let (path, tensor) = (draft.header.path.clone(), name.to_owned());
        return Err(GgufError::Tensor { path, tensor, problem }.into());
    }
    Ok(Some(json!(numbers.iter().map(|x| shortest(*x)).collect::<Vec<_>>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_gives_back_what_it_is_of() {
        for whole in 1..300 {
            for part in 1..=whole {
                assert_eq!((whole as f64 * ratio(part, whole)) as u64, part, "{part} of {whole}");
            }
        }
    }
}
