//! Gemma (Gemma Team 2024), as transformers' `GemmaForCausalLM`: Llama with norms that multiply by one more than their
//! weights, and embeddings times the root of their width.

use super::blocks::activation::activation;
use super::blocks::decoder::{self, Decoder, Embedding, EmbeddingScale, Mlp, Usual};
use super::blocks::norm::{Norm, NormKind};
use super::{Family, with_head_dim};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "gemma", model_types: &["gemma"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    with_head_dim(config, &FAMILY, 256, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual = Usual { tied: true, ..Usual::LLAMA };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let gemma = of_any(config, meta, &USUAL)?;
    // The first files say `gelu` under the one key, which transformers 4 read as what the other says.
    let key = if config.value("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let act = activation(config, key, "gelu_pytorch_tanh")?;
    Ok(Decoder { mlp: Mlp { act, ..gemma.mlp }, ..gemma })
}

/// What all Gemmas have in common.
pub(super) fn of_any(config: &Config, meta: &ModelMeta, usual: &Usual) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, usual)?;
    let scale = EmbeddingScale::Rounded((meta.hidden as f64).sqrt());
    Ok(Decoder {
        norm: Norm { kind: NormKind::RmsFromOne, ..llama.norm },
        embedding: Embedding { scale, ..llama.embedding },
        ..llama
    })
}
