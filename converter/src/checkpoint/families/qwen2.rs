//! Qwen2 and Qwen2.5 (Yang et al. 2024), as transformers' `Qwen2ForCausalLM`: Llama with biases of queries, keys and
//! values, and with windows in the last layers where they are turned on.

use super::blocks::decoder::{self, Decoder, SelfAttention, Usual};
use super::blocks::window::{Rest, WindowKeys};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "qwen2", model_types: &["qwen2"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

/// Those of Qwen3 too.
pub(super) const WINDOWS: WindowKeys =
    WindowKeys { tokens: Some(4096), switch: Some(false), first: Some(28), rest: Rest::From(28) };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &Usual::LLAMA)?;
    let attention = SelfAttention::apart(meta, [true, false]);
    Ok(Decoder { attention, windows: WINDOWS.windows(config, meta.layers)?, ..llama })
}
