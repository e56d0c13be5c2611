//! Llama (Touvron et al. 2023), as transformers' `LlamaForCausalLM`: RMS norms before each block,
//! rotary positions, grouped-query attention, a gated MLP. Other families are the same graph with
//! windows in some of the layers.

use super::blocks::activation::{Activation, activation};
use super::blocks::attention::{Attention, attention, split_heads};
use super::blocks::mask::Masks;
use super::blocks::rope::{self, Rope};
use super::blocks::window::Windows;
use super::{Family, meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::Builder;
use crate::checkpoint::config::{Config, RopeKeys};
use crate::checkpoint::error::CheckpointError;
use dijiang_passes::ir::graph::ValueId;

pub(super) const FAMILY: Family =
    Family { name: "llama", model_types: &["llama"], base_prefix: "model.", meta: read_meta, build };

const ROPE_KEYS: RopeKeys =
    RopeKeys { theta: &["rope_theta"], partial: &["partial_rotary_factor"], share: 1.0 };

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    meta_of(config, &FAMILY)
}

/// What a model of this graph is, read as one of a family.
pub(super) fn meta_of(config: &Config, family: &Family) -> Result<ModelMeta, CheckpointError> {
    let kv_heads = config.opt_size("num_key_value_heads")?;
    let meta = meta(config, family, kv_heads, config.opt_size("head_dim")?)?;
    rope::rotated(config, &config.rope(&ROPE_KEYS)?, meta.head_dim)?;
    activation_of(config)?;
    Ok(meta)
}

fn activation_of(config: &Config) -> Result<Activation, CheckpointError> {
    activation(config, "hidden_act", "silu")
}

struct Llama {
    attention: Attention,
    rope: Rope,
    masks: Masks,
    act: Activation,
    epsilon: f64,
    intermediate: u64,
    attention_bias: bool,
    mlp_bias: bool,
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    build_with(b, Windows::default())
}

/// The graph with these windows in its layers, or with none.
pub(super) fn build_with(b: &mut Builder<'_>, windows: Windows) -> Result<(), CheckpointError> {
    let (config, meta) = (b.config, b.meta);
    let inputs = b.inputs();
    let settings = config.rope(&ROPE_KEYS)?;
    let model = Llama {
        attention: Attention::of(meta),
        rope: rope::rope(b, "model.rotary_emb", &settings, meta.head_dim, inputs.positions)?,
        masks: Masks::write(b, &inputs, windows),
        act: activation_of(config)?,
        epsilon: config.f64_or("rms_norm_eps", 1e-6)?,
        intermediate: config.size("intermediate_size")?,
        attention_bias: config.bool_or("attention_bias", false)?,
        mlp_bias: config.bool_or("mlp_bias", false)?,
    };
    let mut x = b.embedding("model.embed_tokens", inputs.ids, meta.vocab, meta.hidden)?;
    for layer in 0..meta.layers {
        x = model.layer(b, layer, x)?;
    }
    x = b.rms_norm("model.norm", x, model.epsilon)?;
    let tied = config.bool_or("tie_word_embeddings", false)?;
    let logits = b.logits("lm_head", if tied { "model.embed_tokens" } else { "lm_head" }, x)?;
    b.outputs(logits);
    Ok(())
}

impl Llama {
    fn layer(&self, b: &mut Builder<'_>, layer: u64, x: ValueId) -> Result<ValueId, CheckpointError> {
        let at = format!("model.layers.{layer}");
        let normal = b.rms_norm(&format!("{at}.input_layernorm"), x, self.epsilon)?;
        let attended = self.self_attention(b, layer, &format!("{at}.self_attn"), normal)?;
        let x = b.residual(&at, x, attended);
        let normal = b.rms_norm(&format!("{at}.post_attention_layernorm"), x, self.epsilon)?;
        let moved = self.mlp(b, &format!("{at}.mlp"), normal)?;
        Ok(b.residual(&at, x, moved))
    }

    fn self_attention(
        &self,
        b: &mut Builder<'_>,
        layer: u64,
        at: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        let mut project = |name: &str, heads: u64| -> Result<ValueId, CheckpointError> {
            let y = b.linear(&format!("{at}.{name}"), x, heads * head_dim, self.attention_bias)?;
            b.p.set_scope(at);
            Ok(split_heads(b, y, heads, head_dim))
        };
        let q = project("q_proj", heads)?;
        let k = project("k_proj", kv_heads)?;
        let v = project("v_proj", kv_heads)?;
        let q = self.rope.rotate(b, q);
        let k = self.rope.rotate(b, k);
        let joined = attention(b, &self.attention, layer, [q, k, v], self.masks.of(layer));
        b.linear(&format!("{at}.o_proj"), joined, b.meta.hidden, self.attention_bias)
    }

    /// `down(act(gate(x)) * up(x))`
    fn mlp(&self, b: &mut Builder<'_>, at: &str, x: ValueId) -> Result<ValueId, CheckpointError> {
        let gate = b.linear(&format!("{at}.gate_proj"), x, self.intermediate, self.mlp_bias)?;
        b.p.set_scope(at);
        let gate = (self.act)(&mut b.p, gate);
        let up = b.linear(&format!("{at}.up_proj"), x, self.intermediate, self.mlp_bias)?;
        b.p.set_scope(at);
        let inner = b.p.mul(gate, up);
        b.linear(&format!("{at}.down_proj"), inner, b.meta.hidden, self.mlp_bias)
    }
}
