//! GPT-2 (Radford et al. 2019), as transformers' `GPT2LMHeadModel`: learned positions, layer norms before each block,
//! queries, keys and values from one projection, and weights stored the other way round.

use super::blocks::activation::activation;
use super::blocks::attention::Attention;
use super::blocks::decoder::{
    self, Decoder, Embedding, EmbeddingScale, Head, Mlp, MlpKind, Names, Norms, Projections, SelfAttention,
};
use super::blocks::norm::{Norm, NormKind};
use super::blocks::window::Windows;
use super::{Family, SizeKeys, described, meta_by};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "gpt2", model_types: &["gpt2"], base_prefix: "transformer.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    let mut meta = meta_by(config, &FAMILY, &SIZES, [None; 2])?;
    meta.learned_positions = Some(config.opt_size(SIZES.positions)?.unwrap_or(1024));
    described(config, meta, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

/// What GPT-2 calls the sizes of a model, and GPT-J too.
pub(super) const SIZES: SizeKeys =
    SizeKeys { hidden: "n_embd", heads: "n_head", layers: "n_layer", positions: "n_positions" };

pub(super) const NAMES: Names = Names {
    embedding: "transformer.wte",
    rotary: "transformer.rotary",
    layers: "transformer.h",
    attention: "attn",
    mlp: "mlp",
    last_norm: "transformer.ln_f",
    head: "lm_head",
};

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let plain = SelfAttention::apart(meta, [true; 2]);
    let scale = if config.bool_or("scale_attn_weights", true)? { plain.sizes.scale } else { 1.0 };
    Ok(Decoder {
        names: NAMES,
        norm: Norm { kind: NormKind::Layer, epsilon: config.f64_or("layer_norm_epsilon", 1e-5)? },
        norms: Norms { before_attention: Some("ln_1"), before_mlp: Some("ln_2"), ..Norms::default() },
        is_parallel: false,
        attention: SelfAttention {
            sizes: Attention { scale, ..plain.sizes },
            by_layer: config.bool_or("scale_attn_by_inverse_layer_idx", false)?,
            projections: Projections::Blocks("c_attn"),
            out: "c_proj",
            ..plain
        },
        mlp: Mlp {
            kind: MlpKind::Plain(["c_fc", "c_proj"]),
            act: activation(config, "activation_function", "gelu_new")?,
            width: config.opt_size("n_inner")?.unwrap_or(4 * meta.hidden),
            bias: true,
        },
        rotary: None,
        windows: Windows::default(),
        embedding: Embedding { scale: EmbeddingScale::None, positions: Some("transformer.wpe") },
        residual: 1.0,
        head: Head::read(config, true)?,
        is_conv1d: true,
    })
}
