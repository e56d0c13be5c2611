//! Mistral (Jiang et al. 2023), as transformers' `MistralForCausalLM`: Llama with a sliding window in every layer, or in
//! those that `layer_types` names, with which transformers reads it as [`super::ministral`].

use super::blocks::decoder::{self, Decoder, Usual};
use super::blocks::window::{Rest, WindowKeys};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "mistral", model_types: &["mistral"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const WINDOWS: WindowKeys = WindowKeys { tokens: Some(4096), switch: None, first: None, rest: Rest::From(0) };

pub(super) fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &Usual::LLAMA)?;
    Ok(Decoder { windows: WINDOWS.windows(config, meta.layers)?, ..llama })
}
