//! Cohere's Command R (2024), as transformers' `CohereForCausalLM`: attention and MLP side by side after one layer norm
//! without a bias, rotary positions of neighbouring features, norms of each head where they are asked for, scaled logits.

use super::blocks::decoder::{self, Decoder, Head, LayerRotary, Norms, SelfAttention, Usual};
use super::blocks::norm::{Norm, NormKind, Over, QkNorm};
use super::blocks::rope::{Pairs, Rotary};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::rope_config::RopeKeys;

pub(super) const FAMILY: Family =
    Family { name: "cohere", model_types: &["cohere"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

const USUAL: Usual =
    Usual { rope: RopeKeys { base: 500_000.0, ..RopeKeys::USUAL }, tied: true, ..Usual::LLAMA };

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &USUAL)?;
    let norm = Norm { kind: NormKind::LayerWithoutBias, epsilon: config.f64_or("layer_norm_eps", 1e-5)? };
    let over = QkNorm { names: ["q_norm", "k_norm"], over: Over::OwnRow, norm };
    let qk_norm = config.bool_or("use_qk_norm", false)?.then_some(over);
    Ok(Decoder {
        norm,
        norms: Norms { before_attention: Some("input_layernorm"), ..Norms::default() },
        is_parallel: true,
        attention: SelfAttention { qk_norm, ..llama.attention },
        rotary: llama.rotary.map(of_neighbours),
        head: Head { scale: config.f64_or("logit_scale", 0.0625)?, ..llama.head },
        ..llama
    })
}

/// The same angles, of pairs of neighbours.
pub(super) fn of_neighbours(rotary: LayerRotary) -> LayerRotary {
    LayerRotary { far: Rotary { pairs: Pairs::Neighbours, ..rotary.far }, ..rotary }
}
