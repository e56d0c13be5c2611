//! SmolLM3 (Bakouch et al. 2025), as transformers' `SmolLM3ForCausalLM`: Llama in which some layers have no rotary
//! positions.

use super::blocks::decoder::{self, Decoder, LayerRotary, Skips, Usual};
use super::blocks::window::{Rest, WindowKeys};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::{Config, shortened};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "smollm3", model_types: &["smollm3"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual =
    Usual { rope: RopeKeys { base: 2_000_000.0, ..RopeKeys::USUAL }, tied: true, ..Usual::LLAMA };

const WINDOWS: WindowKeys =
    WindowKeys { tokens: None, switch: Some(false), first: None, rest: Rest::From(u64::MAX) };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    let skips = skips(config, meta)?;
    let rotary = llama.rotary.map(|rotary| LayerRotary { skips, ..rotary });
    let windows = WINDOWS.windows(config, meta.layers)?;
    if config.bool_or("use_sliding_window", false)? && config.value("layer_types").is_none() {
        return Err(config.unsupported("use_sliding_window", "true", "false, or true beside layer_types"));
    }
    Ok(Decoder { rotary, windows, ..llama })
}

/// `no_rope_layers` tells of each layer, 1 where it rotates; without it every so many layers one does not.
fn skips(config: &Config, meta: &ModelMeta) -> Result<Skips, CheckpointError> {
    const KEY: &str = "no_rope_layers";
    let each = config.opt_size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(value) = config.value(KEY) else { return Ok(Skips::Each(each)) };
    let rotates: Option<Vec<bool>> =
        value.as_array().and_then(|list| list.iter().map(|one| Some(one.as_u64()? != 0)).collect());
    let rotates = rotates.filter(|list| list.len() as u64 >= meta.layers);
    rotates.map(Skips::Listed).ok_or_else(|| {
        let expected = format!("a list of {}, 1 or 0 for each layer", meta.layers);
        config.bad(KEY, &shortened(value), &expected)
    })
}
