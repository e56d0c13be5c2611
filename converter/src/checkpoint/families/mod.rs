//! The model families: one file each, one row each.

mod blocks;
mod gpt_neox;
mod llama;
mod ministral;
mod mistral;
mod opt;

use super::ModelMeta;
use super::build::Builder;
use super::config::Config;
use super::error::CheckpointError;

/// A model family. Adding one takes a file in this folder and its row in [`FAMILIES`].
#[derive(Debug)]
pub(super) struct Family {
    /// The name of its file.
    pub(super) name: &'static str,
    /// The values of `model_type` in `config.json` that it reads.
    pub(super) model_types: &'static [&'static str],
    /// What the names of tensors begin with in a whole model, but not in files of the base model.
    pub(super) base_prefix: &'static str,
    pub(super) meta: fn(&Config) -> Result<ModelMeta, CheckpointError>,
    pub(super) build: fn(&mut Builder<'_>) -> Result<(), CheckpointError>,
}

/// Every family, in the order of their names.
const FAMILIES: &[&Family] =
    &[&gpt_neox::FAMILY, &llama::FAMILY, &ministral::FAMILY, &mistral::FAMILY, &opt::FAMILY];

/// The family that reads the config's `model_type`.
pub(super) fn find(config: &Config) -> Result<&'static Family, CheckpointError> {
    let model_type = config.str("model_type")?;
    let family = FAMILIES.iter().copied().find(|f| f.model_types.contains(&model_type));
    let known = || {
        let all: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        config.unsupported("model_type", model_type, &all.join(", "))
    };
    family.ok_or_else(known)
}

/// The most features of a head. Rotary tables are made before any weight's shape is compared.
const MOST_HEAD_DIM: u64 = 1 << 16;

/// The config keys that all families share. `kv_heads` and `head_dim` are the config's own where it
/// states them.
fn meta(
    config: &Config,
    family: &Family,
    kv_heads: Option<u64>,
    head_dim: Option<u64>,
) -> Result<ModelMeta, CheckpointError> {
    reject_quantised(config)?;
    let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let kv_heads = kv_heads.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads = {heads}");
        return Err(config.bad("num_key_value_heads", &kv_heads.to_string(), &expected));
    }
    if head_dim.is_none() && !hidden.is_multiple_of(heads) {
        let expected = format!("a multiple of num_attention_heads = {heads}, as no head_dim is given");
        return Err(config.bad("hidden_size", &hidden.to_string(), &expected));
    }
    let key = if head_dim.is_some() { "head_dim" } else { "hidden_size" };
    let head_dim = head_dim.unwrap_or(hidden / heads);
    if head_dim > MOST_HEAD_DIM {
        let found = format!("such that a head has {head_dim} features");
        return Err(config.bad(key, &found, &format!("at most {MOST_HEAD_DIM} of them")));
    }
    let layers = config.size("num_hidden_layers")?;
    Ok(ModelMeta {
        family: family.name,
        model_type: config.str("model_type")?.to_owned(),
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden,
        vocab: config.size("vocab_size")?,
        max_positions: config.opt_size("max_position_embeddings")?,
        learned_positions: None,
        bos: config.token("bos_token_id")?,
        eos: config.tokens("eos_token_id")?,
        pad: config.token("pad_token_id")?,
        expected_sites: layers as usize,
    })
}

fn reject_quantised(config: &Config) -> Result<(), CheckpointError> {
    let Some(how) = config.value("quantization_config") else { return Ok(()) };
    if how.as_object().is_some_and(serde_json::Map::is_empty) {
        return Ok(());
    }
    let method = how.get("quant_method").and_then(serde_json::Value::as_str).unwrap_or("unnamed");
    Err(config.unsupported("quantization_config.quant_method", method, "weights in f32, f16 or bf16"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_file_has_its_row() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checkpoint/families");
        let entries = std::fs::read_dir(folder).expect("the folder of the families");
        let paths = entries.map(|e| e.expect("an entry").path());
        let stem = |p: std::path::PathBuf| p.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut files: Vec<String> =
            paths.filter(|p| p.extension().is_some_and(|e| e == "rs")).map(stem).collect();
        files.retain(|name| name != "mod");
        files.sort();
        let rows: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        assert_eq!(files, rows);
    }

    #[test]
    fn no_model_type_stands_twice() {
        let all: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
