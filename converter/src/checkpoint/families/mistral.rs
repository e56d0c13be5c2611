//! Mistral (Jiang et al. 2023), as transformers' `MistralForCausalLM`: Llama with a sliding window in every layer, or in
//! those that `layer_types` names, with which transformers reads it as [`super::ministral`].

use super::blocks::window::WindowKeys;
use super::{Family, llama};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "mistral", model_types: &["mistral"], base_prefix: "model.", meta: read_meta, build };

const WINDOWS: WindowKeys = WindowKeys { tokens: Some(4096), switch: None, first: None };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    meta_of(config, &FAMILY)
}

/// What a config of this family, or of one that is built alike, says.
pub(super) fn meta_of(config: &Config, family: &Family) -> Result<ModelMeta, CheckpointError> {
    let meta = llama::meta_of(config, family)?;
    WINDOWS.windows(config, meta.layers)?;
    Ok(meta)
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    let windows = WINDOWS.windows(b.config, b.meta.layers)?;
    llama::build_with(b, windows)
}
