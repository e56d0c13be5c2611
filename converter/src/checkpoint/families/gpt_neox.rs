//! GPT-NeoX (Black et al. 2022), as transformers' `GPTNeoXForCausalLM`, which is also Pythia: layer
//! norms, queries, keys and values from one projection, partly rotary positions, and attention and
//! MLP side by side (or one after the other, without `use_parallel_residual`). A checkpoint of the authors' released code brings
//! its [attention](own_attention) along.

use super::blocks::activation::{Activation, activation};
use super::blocks::attention::{Attention, attention, heads_first};
use super::blocks::mask::Masks;
use super::blocks::rope::{self, Rope};
use super::{Family, meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::{Config, RopeConfig, RopeKeys};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::own_attention;
use dijiang_passes::ir::graph::ValueId;

pub(super) const FAMILY: Family =
    Family { name: "gpt_neox", model_types: &["gpt_neox"], base_prefix: "gpt_neox.", meta: read_meta, build };

/// `rope_theta` follows `rotary_emb_base` in transformers, so that one wins where both are there.
const ROPE_KEYS: RopeKeys = RopeKeys {
    theta: &["rotary_emb_base", "rope_theta"],
    partial: &["rotary_pct", "partial_rotary_factor"],
    share: 0.25,
};

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    let meta = meta(config, &FAMILY, None, None)?;
    rope::rotated(config, &rope_of(config)?, meta.head_dim)?;
    activation_of(config)?;
    Ok(meta)
}

fn rope_of(config: &Config) -> Result<RopeConfig, CheckpointError> {
    config.rope(&ROPE_KEYS)
}

fn activation_of(config: &Config) -> Result<Activation, CheckpointError> {
    activation(config, "hidden_act", "gelu")
}

struct GptNeox {
    attention: Attention,
    rope: Rope,
    masks: Masks,
    act: Activation,
    epsilon: f64,
    intermediate: u64,
    attention_bias: bool,
    parallel: bool,
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    let (config, meta) = (b.config, b.meta);
    let inputs = b.inputs();
    let model = GptNeox {
        attention: Attention::of(meta),
        rope: rope::rope(b, "gpt_neox.rotary_emb", &rope_of(config)?, meta.head_dim, inputs.positions)?,
        masks: Masks::full(b, &inputs),
        act: activation_of(config)?,
        epsilon: config.f64_or("layer_norm_eps", 1e-5)?,
        intermediate: config.size("intermediate_size")?,
        attention_bias: config.bool_or("attention_bias", true)?,
        parallel: config.bool_or("use_parallel_residual", true)?,
    };
    let mut x = b.embedding("gpt_neox.embed_in", inputs.ids, meta.vocab, meta.hidden)?;
    for layer in 0..meta.layers {
        x = model.layer(b, layer, x)?;
    }
    x = b.layer_norm("gpt_neox.final_layer_norm", x, model.epsilon)?;
    let tied = config.bool_or("tie_word_embeddings", false)?;
    let logits = b.logits("embed_out", if tied { "gpt_neox.embed_in" } else { "embed_out" }, x)?;
    b.outputs(logits);
    Ok(())
}

impl GptNeox {
    fn layer(&self, b: &mut Builder<'_>, layer: u64, x: ValueId) -> Result<ValueId, CheckpointError> {
        let at = format!("gpt_neox.layers.{layer}");
        let normal = b.layer_norm(&format!("{at}.input_layernorm"), x, self.epsilon)?;
        let attended = self.self_attention(b, layer, &format!("{at}.attention"), normal)?;
        let after = b.residual(&at, x, attended);
        let seen = if self.parallel { x } else { after };
        let normal = b.layer_norm(&format!("{at}.post_attention_layernorm"), seen, self.epsilon)?;
        let moved = self.mlp(b, &format!("{at}.mlp"), normal)?;
        Ok(b.residual(&at, after, moved))
    }

    fn self_attention(
        &self,
        b: &mut Builder<'_>,
        layer: u64,
        at: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        let Attention { heads, head_dim, .. } = self.attention;
        own_attention::take(b, at, own_attention::Sizes { heads, head_dim })?;
        let joined =
            b.linear(&format!("{at}.query_key_value"), x, 3 * heads * head_dim, self.attention_bias)?;
        b.p.set_scope(at);
        // Query, key and value lie together head by head.
        let d = head_dim as i64;
        let joined = b.p.reshape(joined, &[0, 0, heads as i64, 3 * d]);
        let parts: Vec<ValueId> =
            b.p.split(joined, -1, &[d, d, d]).into_iter().map(|part| heads_first(b, part)).collect();
        let q = self.rope.rotate(b, parts[0]);
        let k = self.rope.rotate(b, parts[1]);
        let mixed = attention(b, &self.attention, layer, [q, k, parts[2]], self.masks.of(layer));
        b.linear(&format!("{at}.dense"), mixed, b.meta.hidden, self.attention_bias)
    }

    fn mlp(&self, b: &mut Builder<'_>, at: &str, x: ValueId) -> Result<ValueId, CheckpointError> {
        let inner = b.linear(&format!("{at}.dense_h_to_4h"), x, self.intermediate, true)?;
        b.p.set_scope(at);
        let inner = (self.act)(&mut b.p, inner);
        b.linear(&format!("{at}.dense_4h_to_h"), inner, b.meta.hidden, true)
    }
}
