//! Ministral, as transformers' `MinistralForCausalLM`: Mistral whose layers take turns, some with a sliding window and some
//! without.

use super::{Family, mistral};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family = Family {
    name: "ministral",
    model_types: &["ministral"],
    base_prefix: "model.",
    meta: read_meta,
    build: mistral::build,
};

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    mistral::meta_of(config, &FAMILY)
}
