//! GLM-4 (GLM Team 2024), as transformers' `GlmForCausalLM`: Llama with partly rotary positions of neighbouring features,
//! gate and up from one projection, and biases of queries, keys and values.

use super::blocks::decoder::{self, Decoder, Mlp, MlpKind, SelfAttention, Usual};
use super::cohere::of_neighbours;
use super::{Family, with_head_dim};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "glm", model_types: &["glm"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    with_head_dim(config, &FAMILY, 128, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual = Usual {
    rope: RopeKeys { share: 0.5, partial: RopeKeys::PARTIAL, ..RopeKeys::USUAL },
    epsilon: 0.000_000_156_25,
    ..Usual::LLAMA
};

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    Ok(Decoder {
        attention: SelfAttention::apart(meta, [config.bool_or("attention_bias", true)?, false]),
        mlp: Mlp { kind: MlpKind::Joined(["gate_up_proj", "down_proj"]), bias: false, ..llama.mlp },
        rotary: llama.rotary.map(of_neighbours),
        ..llama
    })
}
