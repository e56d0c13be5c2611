//! Llama and what llama.cpp converts as it does Llama: rows of queries and keys were put in the order of pairs that are
//! rotated together.

use super::{Architecture, How, Key, Module, SIZES, TOP, always, changed, key, module};
use crate::checkpoint::gguf::config::biases;

/// Keys that change a Llama.
const KEYS: &[Key] = &[key("attention.key_length", "head_dim")];

const LAYER: &[Module] = &[
    module("attn_norm", "input_layernorm"),
    changed("attn_q", "self_attn.q_proj", How::Queries),
    changed("attn_k", "self_attn.k_proj", How::Keys),
    module("attn_v", "self_attn.v_proj"),
    module("attn_output", "self_attn.o_proj"),
    module("ffn_norm", "post_attention_layernorm"),
    module("ffn_gate", "mlp.gate_proj"),
    module("ffn_up", "mlp.up_proj"),
    module("ffn_down", "mlp.down_proj"),
    changed("attn_rot_embd", "", How::NotRead),
];

/// Mistral, SmolLM and SmolLM2 too, as llama.cpp reads them: without windows.
pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    when: always,
    sizes: &SIZES,
    keys: KEYS,
    top: TOP,
    layers: "model.layers",
    layer: LAYER,
    rest: biases,
};

pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    keys: &[
        key("attention.key_length", "head_dim"),
        key("attention.scale", "attention_multiplier"),
        key("embedding_scale", "embedding_multiplier"),
        key("residual_scale", "residual_multiplier"),
        key("logit_scale", "logits_scaling"),
    ],
    ..LLAMA
};

/// Every fourth layer is without rotary positions, which no key tells.
pub(super) const SMOLLM3: Architecture = Architecture { name: "smollm3", model_type: "smollm3", ..LLAMA };
