//! Ministral, as transformers' `MinistralForCausalLM`: Mistral whose layers take turns, some with a sliding window and some
//! without.

use super::mistral::WINDOWS;
use super::{Family, llama};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "ministral", model_types: &["ministral"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    let meta = llama::meta_of(config, &FAMILY)?;
    WINDOWS.windows(config, meta.layers)?;
    Ok(meta)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    let windows = WINDOWS.windows(b.config, b.meta.layers)?;
    llama::build_with(b, windows)
}
