//! GPT-J (Wang and Komatsuzaki 2021), as transformers' `GPTJForCausalLM`: attention and MLP side by side after one layer
//! norm, rotary positions of neighbouring features on a part of each head, biases in the MLP and of the output alone.

use super::blocks::activation::activation;
use super::blocks::decoder::{
    self, Decoder, Embedding, Head, LayerRotary, Mlp, MlpKind, Names, Norms, SelfAttention, Skips,
};
use super::blocks::norm::{Norm, NormKind};
use super::blocks::rope::{Pairs, Rotary};
use super::blocks::window::Windows;
use super::gpt2::{NAMES, SIZES};
use super::{Family, described, meta_by};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::{RopeConfig, RopeScaling};

pub(super) const FAMILY: Family =
    Family { name: "gptj", model_types: &["gptj"], base_prefix: "transformer.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    described(config, meta_by(config, &FAMILY, &SIZES, [None; 2])?, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let rotated = config.opt_size("rotary_dim")?.unwrap_or(64);
    let partial = rotated as f64 / meta.head_dim as f64;
    let settings = RopeConfig { theta: 10000.0, partial, scaling: RopeScaling::None };
    let far = Rotary { settings, pairs: Pairs::Neighbours };
    Ok(Decoder {
        names: Names { rotary: "transformer.rotary_emb", ..NAMES },
        norm: Norm { kind: NormKind::Layer, epsilon: config.f64_or("layer_norm_epsilon", 1e-5)? },
        norms: Norms { before_attention: Some("ln_1"), ..Norms::default() },
        is_parallel: true,
        attention: SelfAttention { out: "out_proj", ..SelfAttention::apart(meta, [false; 2]) },
        mlp: Mlp {
            kind: MlpKind::Plain(["fc_in", "fc_out"]),
            act: activation(config, "activation_function", "gelu_new")?,
            width: config.opt_size("n_inner")?.unwrap_or(4 * meta.hidden),
            bias: true,
        },
        rotary: Some(LayerRotary { far, near: None, skips: Skips::None }),
        windows: Windows::default(),
        embedding: Embedding::default(),
        residual: 1.0,
        head: Head { bias: true, ..Head::read(config, false)? },
        is_conv1d: false,
    })
}
