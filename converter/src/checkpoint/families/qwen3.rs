//! Qwen3 (Yang et al. 2025), as transformers' `Qwen3ForCausalLM`: Llama with norms of the queries and keys of each head,
//! and with Qwen2's windows.

use super::blocks::decoder::{self, Decoder, SelfAttention, Usual};
use super::blocks::norm::{Over, QkNorm};
use super::qwen2::WINDOWS;
use super::{Family, with_head_dim};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "qwen3", model_types: &["qwen3"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    with_head_dim(config, &FAMILY, 128, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &Usual::LLAMA)?;
    let qk_norm = Some(QkNorm { names: ["q_norm", "k_norm"], over: Over::Head, norm: llama.norm });
    let attention = SelfAttention { qk_norm, ..llama.attention };
    Ok(Decoder { attention, windows: WINDOWS.windows(config, meta.layers)?, ..llama })
}
