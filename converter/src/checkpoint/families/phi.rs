//! Phi-1, Phi-1.5 and Phi-2 (Li et al. 2023), as transformers' `PhiForCausalLM`: attention and MLP side by side after one
//! layer norm, biases everywhere, partly rotary positions.

use super::blocks::activation::activation;
use super::blocks::decoder::{self, Decoder, Head, Mlp, MlpKind, Names, Norms, SelfAttention, Usual};
use super::blocks::norm::{Norm, NormKind, Over, QkNorm};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "phi", model_types: &["phi"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual =
    Usual { rope: RopeKeys { share: 0.5, partial: RopeKeys::PARTIAL, ..RopeKeys::USUAL }, ..Usual::LLAMA };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    let norm = Norm { kind: NormKind::Layer, epsilon: config.f64_or("layer_norm_eps", 1e-5)? };
    let over = QkNorm { names: ["q_layernorm", "k_layernorm"], over: Over::Head, norm };
    let qk_norm = config.bool_or("qk_layernorm", false)?.then_some(over);
    let act = activation(config, "hidden_act", "gelu_new")?;
    Ok(Decoder {
        names: Names { last_norm: "model.final_layernorm", ..llama.names },
        norm,
        norms: Norms { before_attention: Some("input_layernorm"), ..Norms::default() },
        is_parallel: true,
        attention: SelfAttention { out: "dense", qk_norm, ..SelfAttention::apart(meta, [true; 2]) },
        mlp: Mlp { kind: MlpKind::Plain(["fc1", "fc2"]), act, bias: true, ..llama.mlp },
        head: Head { bias: true, ..llama.head },
        ..llama
    })
}
