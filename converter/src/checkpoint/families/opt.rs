//! OPT (Zhang et al. 2022), as transformers' `OPTForCausalLM`: learned positions, layer norms before
//! each block (or after it, in OPT-350m, whose embeddings are also narrower than its layers).

use super::blocks::activation::{Activation, activation};
use super::blocks::attention::{Attention, attention, split_heads};
use super::blocks::mask::Masks;
use super::{Family, meta};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::build::{Builder, Inputs};
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use dijiang_passes::ir::graph::ValueId;

pub(super) const FAMILY: Family =
    Family { name: "opt", model_types: &["opt"], base_prefix: "model.", meta: read_meta, build };

/// The first rows of the position table are not used: positions begin at this one.
const POSITION_OFFSET: u64 = 2;

const TABLE: &str = "model.decoder.embed_tokens";

/// OPT has no key for it; this is torch's default.
const EPSILON: f64 = 1e-5;

fn read_meta(config: &Config) -> Result<ModelMeta, CheckpointError> {
    let mut meta = meta(config, &FAMILY, None, None)?;
    meta.learned_positions = meta.max_positions;
    if !config.bool_or("layer_norm_elementwise_affine", true)? {
        return Err(config.unsupported("layer_norm_elementwise_affine", "false", "true"));
    }
    activation_of(config)?;
    Ok(meta)
}

fn activation_of(config: &Config) -> Result<Activation, CheckpointError> {
    activation(config, "activation_function", "relu")
}

struct Opt {
    attention: Attention,
    masks: Masks,
    act: Activation,
    ffn: u64,
    bias: bool,
    norm_first: bool,
    /// The width of the embedding, which is projected to and from that of the layers.
    narrow: u64,
}

fn build(b: &mut Builder<'_>) -> Result<(), CheckpointError> {
    let (config, meta) = (b.config, b.meta);
    let tied = config.bool_or("tie_word_embeddings", true)?;
    if tied {
        b.tie(TABLE, "lm_head");
    }
    let inputs = b.inputs();
    let model = Opt {
        attention: Attention::of(meta),
        masks: Masks::full(b, &inputs),
        act: activation_of(config)?,
        ffn: config.size("ffn_dim")?,
        bias: config.bool_or("enable_bias", true)?,
        norm_first: config.bool_or("do_layer_norm_before", true)?,
        narrow: config.opt_size("word_embed_proj_dim")?.unwrap_or(meta.hidden),
    };
    let mut x = model.embed(b, &inputs)?;
    for layer in 0..meta.layers {
        x = model.layer(b, layer, x)?;
    }
    let without_last_norm = config.bool_or("_remove_final_layer_norm", false)?;
    if model.norm_first && !without_last_norm {
        x = b.layer_norm("model.decoder.final_layer_norm", x, EPSILON)?;
    }
    if model.narrow != meta.hidden {
        x = b.linear("model.decoder.project_out", x, model.narrow, false)?;
    }
    let logits = b.logits("lm_head", if tied { TABLE } else { "lm_head" }, x)?;
    b.outputs(logits);
    Ok(())
}

impl Opt {
    fn embed(&self, b: &mut Builder<'_>, inputs: &Inputs) -> Result<ValueId, CheckpointError> {
        let hidden = b.meta.hidden;
        let mut x = b.embedding(TABLE, inputs.ids, b.meta.vocab, self.narrow)?;
        if self.narrow != hidden {
            x = b.linear("model.decoder.project_in", x, hidden, false)?;
        }
        let module = "model.decoder.embed_positions";
        let rows = b.config.size("max_position_embeddings")? + POSITION_OFFSET;
        b.p.set_scope(module);
        let shifted = b.p.add_scalar(inputs.positions, POSITION_OFFSET as f64);
        let positions = b.embedding(module, shifted, rows, hidden)?;
        Ok(b.residual("model.decoder", x, positions))
    }

    fn layer(&self, b: &mut Builder<'_>, layer: u64, x: ValueId) -> Result<ValueId, CheckpointError> {
        let at = format!("model.decoder.layers.{layer}");
        let x = self.block(b, &format!("{at}.self_attn_layer_norm"), x, |b, x| {
            self.self_attention(b, layer, &format!("{at}.self_attn"), x)
        })?;
        self.block(b, &format!("{at}.final_layer_norm"), x, |b, x| self.mlp(b, &at, x))
    }

    /// `x + inner(norm(x))`, or `norm(x + inner(x))`
    fn block<'b>(
        &self,
        b: &mut Builder<'b>,
        norm: &str,
        x: ValueId,
        inner: impl FnOnce(&mut Builder<'b>, ValueId) -> Result<ValueId, CheckpointError>,
    ) -> Result<ValueId, CheckpointError> {
        let (at, _) = norm.rsplit_once('.').unwrap_or((norm, ""));
        if self.norm_first {
            let normal = b.layer_norm(norm, x, EPSILON)?;
            let change = inner(b, normal)?;
            return Ok(b.residual(at, x, change));
        }
        let change = inner(b, x)?;
        let sum = b.residual(at, x, change);
        b.layer_norm(norm, sum, EPSILON)
    }

    fn self_attention(
        &self,
        b: &mut Builder<'_>,
        layer: u64,
        at: &str,
        x: ValueId,
    ) -> Result<ValueId, CheckpointError> {
        let Attention { heads, head_dim, .. } = self.attention;
        let mut project = |name: &str| -> Result<ValueId, CheckpointError> {
            let y = b.linear(&format!("{at}.{name}"), x, heads * head_dim, self.bias)?;
            b.p.set_scope(at);
            Ok(split_heads(b, y, heads, head_dim))
        };
        let q = project("q_proj")?;
        let k = project("k_proj")?;
        let v = project("v_proj")?;
        let mixed = attention(b, &self.attention, layer, [q, k, v], self.masks.of(layer));
        b.linear(&format!("{at}.out_proj"), mixed, b.meta.hidden, self.bias)
    }

    fn mlp(&self, b: &mut Builder<'_>, at: &str, x: ValueId) -> Result<ValueId, CheckpointError> {
        let inner = b.linear(&format!("{at}.fc1"), x, self.ffn, self.bias)?;
        b.p.set_scope(at);
        let inner = (self.act)(&mut b.p, inner);
        b.linear(&format!("{at}.fc2"), inner, b.meta.hidden, self.bias)
    }
}
