//! StableLM (Bellagamba et al. 2024), as transformers' `StableLmForCausalLM`: Llama with layer norms, partly rotary
//! positions, biases where they are asked for, attention and MLP side by side where that is, and norms of each head.

use super::blocks::decoder::{self, Decoder, Norms, SelfAttention, Usual};
use super::blocks::norm::{Norm, NormKind, Over, QkNorm};
use super::{Family, described, meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "stablelm", model_types: &["stablelm"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    let meta = meta(config, &FAMILY, config.opt_size("num_key_value_heads")?, None)?;
    described(config, meta, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual =
    Usual { rope: RopeKeys { share: 0.25, partial: RopeKeys::PARTIAL, ..RopeKeys::USUAL }, ..Usual::LLAMA };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    let norm = Norm { kind: NormKind::Layer, epsilon: config.f64_or("layer_norm_eps", 1e-5)? };
    let is_parallel = config.bool_or("use_parallel_residual", false)?;
    let over = QkNorm { names: ["q_layernorm", "k_layernorm"], over: Over::OwnModule, norm };
    let qk_norm = config.bool_or("qk_layernorm", false)?.then_some(over);
    let attention = SelfAttention::apart(meta, [config.bool_or("use_qkv_bias", false)?, false]);
    let before_mlp = llama.norms.before_mlp.filter(|_| !is_parallel);
    Ok(Decoder {
        norm,
        norms: Norms { before_mlp, ..llama.norms },
        is_parallel,
        attention: SelfAttention { qk_norm, ..attention },
        ..llama
    })
}
