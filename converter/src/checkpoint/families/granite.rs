//! Granite (Granite Team 2024), as transformers' `GraniteForCausalLM`: Llama with four multipliers.

use super::blocks::attention::Attention;
use super::blocks::decoder::{self, Decoder, Embedding, EmbeddingScale, Head, SelfAttention, Usual};
use super::{Family, usual_meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;

pub(super) const FAMILY: Family =
    Family { name: "granite", model_types: &["granite"], base_prefix: "model.", meta: read_meta, build };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    usual_meta(config, &FAMILY, describe)
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    decoder::build(b, describe)
}

fn describe(config: &Config, meta: &ModelMeta) -> Result<Decoder, CheckpointError> {
    let llama = Decoder::usual(config, meta, &Usual::LLAMA)?;
    let multiplier = |key: &str| {
        let found = config.f64_or(key, 1.0)?;
        if found > 0.0 { Ok(found) } else { Err(config.bad(key, &found.to_string(), "a positive number")) }
    };
    let sizes = Attention { scale: multiplier("attention_multiplier")?, ..llama.attention.sizes };
    let scale = EmbeddingScale::By(multiplier("embedding_multiplier")?);
    Ok(Decoder {
        attention: SelfAttention { sizes, ..llama.attention },
        embedding: Embedding { scale, ..llama.embedding },
        residual: multiplier("residual_multiplier")?,
        head: Head { scale: multiplier("logits_scaling")?.recip(), ..llama.head },
        ..llama
    })
}
