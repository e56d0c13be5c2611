//! Decoders whose tensors are stored as transformers stores them.

use super::{Architecture, Epsilon, How, Key, Module, PART, SIZES, Sizes, TOP, always, changed, key, module};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::gguf::config::{Draft, biases};
use serde_json::json;

const KEYS: &[Key] =
    &[key("attention.key_length", "head_dim"), key("attention.sliding_window", "sliding_window")];

const GATED: &[Module] = &[
    module("attn_norm", "input_layernorm"),
    module("attn_q", "self_attn.q_proj"),
    module("attn_k", "self_attn.k_proj"),
    module("attn_v", "self_attn.v_proj"),
    module("attn_output", "self_attn.o_proj"),
    module("attn_q_norm", "self_attn.q_norm"),
    module("attn_k_norm", "self_attn.k_norm"),
    module("ffn_norm", "post_attention_layernorm"),
    module("ffn_gate", "mlp.gate_proj"),
    module("ffn_up", "mlp.up_proj"),
    module("ffn_down", "mlp.down_proj"),
];

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    when: always,
    sizes: &SIZES,
    keys: KEYS,
    top: TOP,
    layers: "model.layers",
    layer: GATED,
    rest: biases,
};

pub(super) const QWEN3: Architecture = Architecture { name: "qwen3", model_type: "qwen3", ..QWEN2 };

pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    layer: &[
        module("attn_q", "self_attn.q_proj"),
        module("attn_k", "self_attn.k_proj"),
        module("attn_v", "self_attn.v_proj"),
        module("attn_output", "self_attn.o_proj"),
        module("attn_q_norm", "self_attn.q_norm"),
        module("attn_k_norm", "self_attn.k_norm"),
        module("post_attention_norm", "post_attention_layernorm"),
        module("ffn_gate", "mlp.gate_proj"),
        module("ffn_up", "mlp.up_proj"),
        module("ffn_down", "mlp.down_proj"),
        module("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    ..QWEN2
};

pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    model_type: "phi3",
    keys: &[key("attention.sliding_window", "sliding_window"), PART],
    top: &[
        module("token_embd", "model.embed_tokens"),
        module("output_norm", "model.norm"),
        module("output", "lm_head"),
        changed("rope_factors_long", "", How::NotRead),
        changed("rope_factors_short", "", How::NotRead),
    ],
    layer: &[
        module("attn_norm", "input_layernorm"),
        module("attn_qkv", "self_attn.qkv_proj"),
        module("attn_output", "self_attn.o_proj"),
        module("ffn_norm", "post_attention_layernorm"),
        module("ffn_up", "mlp.gate_up_proj"),
        module("ffn_down", "mlp.down_proj"),
    ],
    ..QWEN2
};

pub(super) const PHI2: Architecture = Architecture {
    name: "phi2",
    model_type: "phi",
    keys: &[PART],
    sizes: &Sizes { norm: Epsilon::Layer("layer_norm_eps"), ..SIZES },
    top: &[
        module("token_embd", "model.embed_tokens"),
        module("output_norm", "model.final_layernorm"),
        module("output", "lm_head"),
    ],
    layer: &[
        module("attn_norm", "input_layernorm"),
        module("attn_q", "self_attn.q_proj"),
        module("attn_k", "self_attn.k_proj"),
        module("attn_v", "self_attn.v_proj"),
        module("attn_output", "self_attn.dense"),
        module("ffn_up", "mlp.fc1"),
        module("ffn_down", "mlp.fc2"),
    ],
    ..QWEN2
};

pub(super) const STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    model_type: "starcoder2",
    sizes: &Sizes { norm: Epsilon::Layer("norm_epsilon"), ..SIZES },
    layer: &[
        module("attn_norm", "input_layernorm"),
        module("attn_q", "self_attn.q_proj"),
        module("attn_k", "self_attn.k_proj"),
        module("attn_v", "self_attn.v_proj"),
        module("attn_output", "self_attn.o_proj"),
        module("ffn_norm", "post_attention_layernorm"),
        module("ffn_up", "mlp.c_fc"),
        module("ffn_down", "mlp.c_proj"),
        changed("attn_rot_embd", "", How::NotRead),
    ],
    rest: of_starcoder2,
    ..QWEN2
};

fn of_starcoder2(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    draft.set("use_bias", json!(draft.header.has("blk.0.attn_q.bias")));
    if !draft.is_set("sliding_window") {
        draft.note("the file names no window, and every token is seen, as llama.cpp has it; StarCoder2 was trained with one of 4096 tokens");
    }
    Ok(())
}

pub(super) const STABLELM: Architecture = Architecture {
    name: "stablelm",
    model_type: "stablelm",
    sizes: &Sizes { norm: Epsilon::Layer("layer_norm_eps"), ..SIZES },
    keys: &[key("use_parallel_residual", "use_parallel_residual"), PART],
    layer: &[
        module("attn_norm", "input_layernorm"),
        module("attn_q", "self_attn.q_proj"),
        module("attn_k", "self_attn.k_proj"),
        module("attn_v", "self_attn.v_proj"),
        module("attn_output", "self_attn.o_proj"),
        changed("attn_q_norm", "self_attn.q_layernorm.norms.{head}", How::PerHead),
        changed("attn_k_norm", "self_attn.k_layernorm.norms.{head}", How::PerHead),
        module("ffn_norm", "post_attention_layernorm"),
        module("ffn_gate", "mlp.gate_proj"),
        module("ffn_up", "mlp.up_proj"),
        module("ffn_down", "mlp.down_proj"),
    ],
    rest: of_stablelm,
    ..QWEN2
};

fn of_stablelm(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    draft.set("use_qkv_bias", json!(draft.header.has("blk.0.attn_q.bias")));
    draft.set("qk_layernorm", json!(draft.header.has("blk.0.attn_q_norm.weight")));
    Ok(())
}

pub(super) const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    model_type: "cohere",
    sizes: &Sizes { norm: Epsilon::Layer("layer_norm_eps"), ..SIZES },
    keys: &[key("logit_scale", "logit_scale")],
    rest: of_command_r,
    ..QWEN2
};

fn of_command_r(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    draft.set("use_qk_norm", json!(draft.header.has("blk.0.attn_q_norm.weight")));
    Ok(())
}
