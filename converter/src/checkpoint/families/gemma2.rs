//! Gemma 2 (Gemma Team 2024), as transformers' `Gemma2ForCausalLM`: Gemma with a norm before and after each block, soft
//! caps on the scores and on the logits, a scale of its own, and a window in every second layer.

use super::blocks::activation::activation;
use super::blocks::attention::Attention;
use super::blocks::decoder::{self, Decoder, Head, Mlp, Norms, SelfAttention, Usual};
use super::blocks::window::{Rest, WindowKeys};
use super::gemma;
use super::{Family, with_head_dim};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "gemma2", model_types: &["gemma2"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    with_head_dim(config, &FAMILY, 256, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual = Usual { tied: true, ..Usual::LLAMA };

const WINDOWS: WindowKeys =
    WindowKeys { tokens: Some(4096), switch: None, first: None, rest: Rest::AllButEach(2) };

/// The caps where a config has no such keys. One of null is none.
const CAPS: [Option<f64>; 2] = [Some(50.0), Some(30.0)];

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let decoder = of_later(config, meta, (&USUAL, CAPS))?;
    Ok(Decoder { windows: WINDOWS.windows(config, meta.layers)?, ..decoder })
}

/// What Gemma 2 and 3 have in common, with these caps where no key tells.
pub(super) fn of_later(
    config: &Config,
    meta: &ModelMeta,
    (usual, [of_scores, of_logits]): (&Usual, [Option<f64>; 2]),
) -> Result<Decoder, CheckpointError> {
    let gemma = gemma::of_any(config, meta, usual)?;
    let cap = |key: &str, default: Option<f64>| {
        let stated = config.opt_f64(key)?;
        let cap = if config.values().contains_key(key) { stated } else { default };
        match cap {
            Some(cap) if cap <= 0.0 => Err(config.bad(key, &cap.to_string(), "a positive number or null")),
            cap => Ok(cap),
        }
    };
    let sizes = Attention {
        scale: (config.opt_size("query_pre_attn_scalar")?.unwrap_or(256) as f64).sqrt().recip(),
        softcap: cap("attn_logit_softcapping", of_scores)?,
        ..gemma.attention.sizes
    };
    let act = activation(config, "hidden_activation", "gelu_pytorch_tanh")?;
    Ok(Decoder {
        norms: Norms {
            before_attention: Some("input_layernorm"),
            after_attention: Some("post_attention_layernorm"),
            before_mlp: Some("pre_feedforward_layernorm"),
            after_mlp: Some("post_feedforward_layernorm"),
        },
        attention: SelfAttention { sizes, ..gemma.attention },
        mlp: Mlp { act, ..gemma.mlp },
        head: Head { softcap: cap("final_logit_softcapping", of_logits)?, ..gemma.head },
        ..gemma
    })
}
