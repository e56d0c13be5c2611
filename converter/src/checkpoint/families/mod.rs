//! The model families: one file each, one row each.

mod blocks;
mod cohere;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod gpt2;
mod gpt_neox;
mod gptj;
mod granite;
mod llama;
mod ministral;
mod mistral;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod stablelm;
mod starcoder2;

use super::ModelMeta;
use super::build::Builder;
use super::config::Config;
use super::error::CheckpointError;
use super::refusals;
use blocks::decoder::Describe;

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
const FAMILIES: &[&Family] = &[
    &cohere::FAMILY,
    &falcon::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &glm::FAMILY,
    &gpt2::FAMILY,
    &gpt_neox::FAMILY,
    &gptj::FAMILY,
    &granite::FAMILY,
    &llama::FAMILY,
    &ministral::FAMILY,
    &mistral::FAMILY,
    &olmo2::FAMILY,
    &opt::FAMILY,
    &phi::FAMILY,
    &phi3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &smollm3::FAMILY,
    &stablelm::FAMILY,
    &starcoder2::FAMILY,
];

/// The family that reads the config's `model_type`.
pub(super) fn find(config: &Config) -> Result<&'static Family, CheckpointError> {
    let model_type = config.str("model_type")?;
    refusals::check(config, model_type)?;
    let family = FAMILIES.iter().copied().find(|f| f.model_types.contains(&model_type));
    let known = || {
        let all: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        config.unsupported("model_type", model_type, &all.join(", "))
    };
    family.ok_or_else(known)
}

/// The most features of a head. Rotary tables are made before any weight's shape is compared.
const MOST_HEAD_DIM: u64 = 1 << 16;

/// What a family calls the sizes of a model.
struct SizeKeys {
    hidden: &'static str,
    heads: &'static str,
    layers: &'static str,
    positions: &'static str,
}

const SIZES: SizeKeys = SizeKeys {
    hidden: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    positions: "max_position_embeddings",
};

/// The config keys that all families share. `kv_heads` and `head_dim` are the config's own where it
/// states them.
fn meta(
    config: &Config,
    family: &Family,
    kv_heads: Option<u64>,
    head_dim: Option<u64>,
) -> Result<ModelMeta, CheckpointError> {
    meta_by(config, family, &SIZES, [kv_heads, head_dim])
}

/// The same by other keys.
fn meta_by(
    config: &Config,
    family: &Family,
    keys: &SizeKeys,
    [kv_heads, head_dim]: [Option<u64>; 2],
) -> Result<ModelMeta, CheckpointError> {
    let (hidden, heads) = (config.size(keys.hidden)?, config.size(keys.heads)?);
    let kv_heads = kv_heads.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of {} = {heads}", keys.heads);
        return Err(config.bad("num_key_value_heads", &kv_heads.to_string(), &expected));
    }
    if head_dim.is_none() && !hidden.is_multiple_of(heads) {
        let expected = format!("a multiple of {} = {heads}, as no head_dim is given", keys.heads);
        return Err(config.bad(keys.hidden, &hidden.to_string(), &expected));
    }
    let key = if head_dim.is_some() { "head_dim" } else { keys.hidden };
    let head_dim = head_dim.unwrap_or(hidden / heads);
    if head_dim > MOST_HEAD_DIM {
        let found = format!("such that a head has {head_dim} features");
        return Err(config.bad(key, &found, &format!("at most {MOST_HEAD_DIM} of them")));
    }
    let layers = config.size(keys.layers)?;
    Ok(ModelMeta {
        family: family.name,
        model_type: config.str("model_type")?.to_owned(),
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden,
        vocab: config.size("vocab_size")?,
        max_positions: config.opt_size(keys.positions)?,
        learned_positions: None,
        bos: config.token("bos_token_id")?,
        eos: config.tokens("eos_token_id")?,
        pad: config.token("pad_token_id")?,
        expected_sites: layers as usize,
    })
}

/// What a config of Llama's keys says, where its description holds.
fn usual_meta(config: &Config, family: &Family, describe: Describe) -> Result<ModelMeta, CheckpointError> {
    let kv_heads = config.opt_size("num_key_value_heads")?;
    described(config, meta(config, family, kv_heads, config.opt_size("head_dim")?)?, describe)
}

/// The same of a family whose heads have so many features where no key tells. One of null is none.
fn with_head_dim(
    config: &Config,
    family: &Family,
    usual: u64,
    describe: Describe,
) -> Result<ModelMeta, CheckpointError> {
    let kv_heads = config.opt_size("num_key_value_heads")?;
    let usual = (!config.values().contains_key("head_dim")).then_some(usual);
    let head_dim = config.opt_size("head_dim")?.or(usual);
    described(config, meta(config, family, kv_heads, head_dim)?, describe)
}

/// What was read, once the description is sound.
fn described(config: &Config, meta: ModelMeta, describe: Describe) -> Result<ModelMeta, CheckpointError> {
    describe(config, &meta)?.check(config, &meta)?;
    Ok(meta)
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
        let read = FAMILIES.iter().flat_map(|f| f.model_types).copied();
        let all: Vec<&str> = read.chain(refusals::names()).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
