//! GPT-NeoX (Black et al. 2022), as transformers' `GPTNeoXForCausalLM`, which is also Pythia: layer
//! norms, queries, keys and values from one projection, partly rotary positions, and attention and
//! MLP side by side (or one after the other, without `use_parallel_residual`). A checkpoint of the authors' released code brings
//! its [attention](crate::checkpoint::own_attention) along.

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
    Family { name: "gpt_neox", model_types: &["gpt_neox"], base_prefix: "gpt_neox.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    described(config, meta(config, &FAMILY, None, None)?, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

/// `rope_theta` follows `rotary_emb_base` in transformers, so that one wins where both are there.
const ROPE_KEYS: RopeKeys = RopeKeys {
    theta: &["rotary_emb_base", "rope_theta"],
    partial: &["rotary_pct", "partial_rotary_factor"],
    share: 0.25,
    ..RopeKeys::USUAL
};

const NAMES: Names = Names {
    embedding: "gpt_neox.embed_in",
    rotary: "gpt_neox.rotary_emb",
    layers: "gpt_neox.layers",
    attention: "attention",
    mlp: "mlp",
    last_norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
};

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let bias = config.bool_or("attention_bias", true)?;
    let plain = SelfAttention::apart(meta, [bias; 2]);
    let projections = Projections::Groups("query_key_value");
    Ok(Decoder {
        names: NAMES,
        norm: Norm { kind: NormKind::Layer, epsilon: config.f64_or("layer_norm_eps", 1e-5)? },
        norms: Norms {
            before_attention: Some("input_layernorm"),
            before_mlp: Some("post_attention_layernorm"),
            ..Norms::default()
        },
        is_parallel: config.bool_or("use_parallel_residual", true)?,
        attention: SelfAttention { projections, out: "dense", may_be_own: true, ..plain },
        mlp: Mlp {
            kind: MlpKind::Plain(["dense_h_to_4h", "dense_4h_to_h"]),
            act: activation(config, "hidden_act", "gelu")?,
            width: config.size("intermediate_size")?,
            bias: true,
        },
        rotary: Some(LayerRotary::read(config, &ROPE_KEYS)?),
        windows: Windows::default(),
        embedding: Embedding::default(),
        residual: 1.0,
        head: Head::read(config, false)?,
        is_conv1d: false,
    })
}
