//! Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al. 2024), as transformers' `Phi3ForCausalLM`: Llama with queries, keys and
//! values from one projection, gate and up from another, a window in every layer, and LongRoPE.

use super::blocks::decoder::{self, Decoder, Mlp, MlpKind, Projections, SelfAttention, Usual};
use super::blocks::window::{Rest, WindowKeys};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "phi3", model_types: &["phi3"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual = Usual {
    rope: RopeKeys { original_beside: true, partial: RopeKeys::PARTIAL, ..RopeKeys::USUAL },
    epsilon: 1e-5,
    ..Usual::LLAMA
};

const WINDOWS: WindowKeys = WindowKeys { tokens: None, switch: None, first: None, rest: Rest::From(0) };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    // Read by some rotary types, and there with all of them.
    config.opt_size("original_max_position_embeddings")?;
    let plain = SelfAttention::apart(meta, [false; 2]);
    let attention = SelfAttention { projections: Projections::Blocks("qkv_proj"), ..plain };
    let mlp = Mlp { kind: MlpKind::Joined(["gate_up_proj", "down_proj"]), bias: false, ..llama.mlp };
    // Phi-4-mini has a window of twice its positions.
    let windows = WINDOWS.windows(config, meta.layers)?.shorter_than(meta.max_positions);
    Ok(Decoder { attention, mlp, windows, ..llama })
}
