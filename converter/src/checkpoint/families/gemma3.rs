//! Gemma 3 (Gemma Team 2025), as transformers' `Gemma3ForCausalLM`, the text model: Gemma 2 with norms of queries and keys
//! instead of caps, five layers with a window to one without, and a rotary base for each kind.

use super::blocks::decoder::{self, Decoder, LayerRotary, SelfAttention, Skips, Usual};
use super::blocks::norm::{Over, QkNorm};
use super::blocks::rope::{Pairs, Rotary};
use super::blocks::window::{Rest, WindowKeys};
use super::gemma2;
use super::{Family, with_head_dim};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "gemma3", model_types: &["gemma3_text"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    with_head_dim(config, &FAMILY, 256, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const FAR: RopeKeys = RopeKeys { base: 1_000_000.0, layer_type: Some("full_attention"), ..RopeKeys::USUAL };

const NEAR: RopeKeys = RopeKeys {
    theta: &["rope_local_base_freq"],
    layer_type: Some("sliding_attention"),
    scaled: false,
    ..RopeKeys::USUAL
};

const USUAL: Usual = Usual { rope: FAR, tied: true, ..Usual::LLAMA };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let gemma2 = gemma2::of_later(config, meta, (&USUAL, [None; 2]))?;
    let qk_norm = Some(QkNorm { names: ["q_norm", "k_norm"], over: Over::Head, norm: gemma2.norm });
    let near = Some(Rotary { settings: config.rope(&NEAR)?, pairs: Pairs::Halves });
    config.check_rope_types(FAMILY.name)?;
    let far = gemma2.rotary.map(|rotary| rotary.far);
    let windows = WindowKeys {
        tokens: Some(4096),
        switch: None,
        first: None,
        rest: Rest::AllButEach(config.opt_size("sliding_window_pattern")?.unwrap_or(6)),
    };
    Ok(Decoder {
        attention: SelfAttention { qk_norm, ..gemma2.attention },
        rotary: far.map(|far| LayerRotary { far, near, skips: Skips::None }),
        windows: windows.windows(config, meta.layers)?,
        ..gemma2
    })
}
