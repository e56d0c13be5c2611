//! GPT-2, GPT-NeoX and Falcon: queries, keys and values lie in one tensor.

use super::{Architecture, Epsilon, How, PART, SIZES, Sizes, always, changed, key, module};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::gguf::config::Draft;
use serde_json::json;

/// Its linear layers are stored the other way round in transformers.
pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    when: always,
    sizes: &Sizes {
        hidden: "n_embd",
        layers: "n_layer",
        heads: "n_head",
        kv_heads: None,
        width: "n_inner",
        positions: "n_positions",
        norm: Epsilon::Layer("layer_norm_epsilon"),
    },
    keys: &[],
    top: &[
        module("token_embd", "transformer.wte"),
        module("position_embd", "transformer.wpe"),
        module("output_norm", "transformer.ln_f"),
        module("output", "lm_head"),
    ],
    layers: "transformer.h",
    layer: &[
        module("attn_norm", "ln_1"),
        changed("attn_qkv", "attn.c_attn", How::Transposed),
        changed("attn_output", "attn.c_proj", How::Transposed),
        module("ffn_norm", "ln_2"),
        changed("ffn_up", "mlp.c_fc", How::Transposed),
        changed("ffn_down", "mlp.c_proj", How::Transposed),
    ],
    rest: super::nothing,
};

pub(super) const GPTNEOX: Architecture = Architecture {
    name: "gptneox",
    model_type: "gpt_neox",
    sizes: &Sizes { kv_heads: None, norm: Epsilon::Layer("layer_norm_eps"), ..SIZES },
    keys: &[key("use_parallel_residual", "use_parallel_residual"), PART],
    top: &[
        module("token_embd", "gpt_neox.embed_in"),
        module("output_norm", "gpt_neox.final_layer_norm"),
        module("output", "embed_out"),
    ],
    layers: "gpt_neox.layers",
    layer: &[
        module("attn_norm", "input_layernorm"),
        changed("attn_qkv", "attention.query_key_value", How::Groups),
        module("attn_output", "attention.dense"),
        module("ffn_norm", "post_attention_layernorm"),
        module("ffn_up", "mlp.dense_h_to_4h"),
        module("ffn_down", "mlp.dense_4h_to_h"),
    ],
    rest: of_neox,
    ..GPT2
};

fn of_neox(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    draft.set("attention_bias", json!(draft.header.has("blk.0.attn_qkv.bias")));
    Ok(())
}

/// That of 7B and 11B: one norm before attention and MLP.
pub(super) const FALCON: Architecture = Architecture {
    name: "falcon",
    model_type: "falcon",
    sizes: &Sizes {
        kv_heads: Some("num_kv_heads"),
        width: "ffn_hidden_size",
        norm: Epsilon::Layer("layer_norm_epsilon"),
        ..SIZES
    },
    keys: &[],
    top: &[
        module("token_embd", "transformer.word_embeddings"),
        module("output_norm", "transformer.ln_f"),
        module("output", "lm_head"),
    ],
    layers: "transformer.h",
    layer: &[
        module("attn_norm", "input_layernorm"),
        changed("attn_qkv", "self_attention.query_key_value", How::Groups),
        module("attn_output", "self_attention.dense"),
        module("ffn_up", "mlp.dense_h_to_4h"),
        module("ffn_down", "mlp.dense_4h_to_h"),
    ],
    rest: |draft| of_falcon(draft, 1),
    ..GPT2
};

/// That of 40B: a norm for each.
pub(super) const FALCON_40B: Architecture = Architecture {
    when: |header| header.has("blk.0.attn_norm_2.weight"),
    layer: &[
        module("attn_norm", "ln_mlp"),
        module("attn_norm_2", "ln_attn"),
        changed("attn_qkv", "self_attention.query_key_value", How::Groups),
        module("attn_output", "self_attention.dense"),
        module("ffn_up", "mlp.dense_h_to_4h"),
        module("ffn_down", "mlp.dense_4h_to_h"),
    ],
    rest: |draft| of_falcon(draft, 2),
    ..FALCON
};

/// Several key/value heads are of the later architecture, which may have one norm too.
fn of_falcon(draft: &mut Draft<'_>, norms: u64) -> Result<(), CheckpointError> {
    let is_new = draft.size("num_kv_heads") > 1 || norms > 1;
    draft.set("new_decoder_architecture", json!(is_new));
    if is_new {
        draft.set("num_ln_in_parallel_attn", json!(norms));
    }
    draft.set("multi_query", json!(true));
    draft.set("parallel_attn", json!(true));
    draft.set("bias", json!(draft.header.has("blk.0.attn_qkv.bias")));
    Ok(())
}
