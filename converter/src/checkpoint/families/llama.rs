//! Llama (Touvron et al. 2023), as transformers' `LlamaForCausalLM`: RMS norms before each block,
//! rotary positions, grouped-query attention, a gated MLP.

use super::blocks::decoder::{self, Decoder, Usual};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "llama", model_types: &["llama"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

pub(super) fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    Decoder::usual(config, meta, &Usual::LLAMA)
}
