//! Ministral, as transformers' `MinistralForCausalLM`: Mistral whose layers take turns, some with a sliding window and some
//! without.

use super::mistral::{build, describe};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "ministral", model_types: &["ministral"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}
