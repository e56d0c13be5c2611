//! OLMo 2 (OLMo et al. 2024), as transformers' `Olmo2ForCausalLM`: Llama with norms after the blocks instead of before
//! them, and norms of all queries and of all keys together.

use super::blocks::decoder::{self, Decoder, Norms, SelfAttention, Usual};
use super::blocks::norm::{Over, QkNorm};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "olmo2", model_types: &["olmo2"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual = Usual { epsilon: 1e-5, ..Usual::LLAMA };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    let qk_norm = Some(QkNorm { names: ["q_norm", "k_norm"], over: Over::Width, norm: llama.norm });
    let norms = Norms {
        after_attention: Some("post_attention_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
        ..Norms::default()
    };
    Ok(Decoder { norms, attention: SelfAttention { qk_norm, ..llama.attention }, ..llama })
}
