//! StarCoder2 (Lozhkov et al. 2024), as transformers' `Starcoder2ForCausalLM`: Llama with layer norms, biases, a plain MLP,
//! and a window in every layer.

use super::blocks::activation::activation;
use super::blocks::decoder::{self, Decoder, Mlp, MlpKind, SelfAttention, Usual};
use super::blocks::norm::{Norm, NormKind};
use super::blocks::window::{Rest, WindowKeys};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family = Family {
    name: "starcoder2",
    model_types: &["starcoder2"],
    base_prefix: "model.",
    meta: read_meta,
    build,
};

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual = Usual { tied: true, ..Usual::LLAMA };

const WINDOWS: WindowKeys = WindowKeys { tokens: None, switch: None, first: None, rest: Rest::From(0) };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    let bias = config.bool_or("use_bias", true)?;
    let act = activation(config, "hidden_act", "gelu_pytorch_tanh")?;
    Ok(Decoder {
        norm: Norm { kind: NormKind::Layer, epsilon: config.f64_or("norm_epsilon", 1e-5)? },
        attention: SelfAttention::apart(meta, [bias; 2]),
        mlp: Mlp { kind: MlpKind::Plain(["c_fc", "c_proj"]), act, bias, ..llama.mlp },
        windows: WINDOWS.windows(config, meta.layers)?,
        ..llama
    })
}
