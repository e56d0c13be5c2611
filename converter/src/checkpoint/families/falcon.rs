//! Falcon (Almazrouei et al. 2023), as transformers' `FalconForCausalLM`: layer norms, queries, keys and values from one
//! projection with few key/value heads, attention and MLP side by side after one norm, after two, or one after the other.

use super::blocks::activation::activation;
use super::blocks::decoder::{
    self, Decoder, Embedding, Head, LayerRotary, Mlp, MlpKind, Names, Norms, Projections, SelfAttention,
};
use super::blocks::norm::{Norm, NormKind};
use super::blocks::window::Windows;
use super::{Family, described, meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "falcon", model_types: &["falcon"], base_prefix: "transformer.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    let meta = meta(config, &FAMILY, Some(kv_heads(config)?), None)?;
    described(config, meta, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const NAMES: Names = Names {
    embedding: "transformer.word_embeddings",
    rotary: "transformer.rotary_emb",
    layers: "transformer.h",
    attention: "self_attention",
    mlp: "mlp",
    last_norm: "transformer.ln_f",
    head: "lm_head",
};

const ALIBI: &str = "a bias on the scores by distance, for which there is no linear attention here (hint: Falcon-7B and 40B rotate instead; take one of those)";

/// `new_decoder_architecture` is of 40B, where the two other keys mean nothing.
fn kv_heads(config: &Config) -> Result<u64, CheckpointError> {
    let is_new = config.bool_or("new_decoder_architecture", false)?;
    let is_one = config.bool_or("multi_query", true)?;
    let heads = config.size("num_attention_heads")?;
    let stated = config.opt_size("num_kv_heads")?;
    Ok(match (is_new, is_one) {
        (true, _) => stated.unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    })
}

fn norms(config: &Config) -> Result<Norms, CheckpointError> {
    let is_new = config.bool_or("new_decoder_architecture", false)?;
    let are_two = is_new && config.opt_size("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
    let (before_attention, before_mlp) = match (are_two, is_parallel(config)?) {
        (true, _) => ("ln_attn", Some("ln_mlp")),
        (false, true) => ("input_layernorm", None),
        (false, false) => ("input_layernorm", Some("post_attention_layernorm")),
    };
    Ok(Norms { before_attention: Some(before_attention), before_mlp, ..Norms::default() })
}

fn is_parallel(config: &Config) -> Result<bool, CheckpointError> {
    let is_new = config.bool_or("new_decoder_architecture", false)?;
    Ok(config.bool_or("parallel_attn", true)? || is_new)
}

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    if config.bool_or("alibi", false)? {
        return Err(config.refused("alibi", "true", ALIBI));
    }
    let bias = config.bool_or("bias", false)?;
    let plain = SelfAttention::apart(meta, [bias; 2]);
    let projections = Projections::Groups("query_key_value");
    Ok(Decoder {
        names: NAMES,
        norm: Norm { kind: NormKind::Layer, epsilon: config.f64_or("layer_norm_epsilon", 1e-5)? },
        norms: norms(config)?,
        is_parallel: is_parallel(config)?,
        attention: SelfAttention { projections, out: "dense", ..plain },
        mlp: Mlp {
            kind: MlpKind::Plain(["dense_h_to_4h", "dense_4h_to_h"]),
            act: activation(config, "activation", "gelu")?,
            width: config.opt_size("ffn_hidden_size")?.unwrap_or(4 * meta.hidden),
            bias,
        },
        rotary: Some(LayerRotary::read(config, &RopeKeys::USUAL)?),
        windows: Windows::default(),
        embedding: Embedding::default(),
        residual: 1.0,
        head: Head::read(config, true)?,
        is_conv1d: false,
    })
}
