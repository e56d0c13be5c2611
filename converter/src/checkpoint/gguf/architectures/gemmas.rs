//! Gemmas: norms are stored with the one that they add to their weights.

use super::{Architecture, How, Key, Module, SIZES, always, changed, key, module, nothing};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::gguf::config::Draft;
use serde_json::json;

const TOP: &[Module] = &[
    module("token_embd", "model.embed_tokens"),
    changed("output_norm", "model.norm", How::OneMore),
    module("output", "lm_head"),
];

const LATER: &[Module] = &[
    changed("attn_norm", "input_layernorm", How::OneMore),
    module("attn_q", "self_attn.q_proj"),
    module("attn_k", "self_attn.k_proj"),
    module("attn_v", "self_attn.v_proj"),
    module("attn_output", "self_attn.o_proj"),
    changed("attn_q_norm", "self_attn.q_norm", How::OneMore),
    changed("attn_k_norm", "self_attn.k_norm", How::OneMore),
    changed("post_attention_norm", "post_attention_layernorm", How::OneMore),
    changed("ffn_norm", "pre_feedforward_layernorm", How::OneMore),
    module("ffn_gate", "mlp.gate_proj"),
    module("ffn_up", "mlp.up_proj"),
    module("ffn_down", "mlp.down_proj"),
    changed("post_ffw_norm", "post_feedforward_layernorm", How::OneMore),
];

pub(super) const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_type: "gemma",
    when: always,
    sizes: &SIZES,
    keys: &[key("attention.key_length", "head_dim")],
    top: TOP,
    layers: "model.layers",
    layer: &[
        changed("attn_norm", "input_layernorm", How::OneMore),
        module("attn_q", "self_attn.q_proj"),
        module("attn_k", "self_attn.k_proj"),
        module("attn_v", "self_attn.v_proj"),
        module("attn_output", "self_attn.o_proj"),
        changed("ffn_norm", "post_attention_layernorm", How::OneMore),
        module("ffn_gate", "mlp.gate_proj"),
        module("ffn_up", "mlp.up_proj"),
        module("ffn_down", "mlp.down_proj"),
    ],
    rest: nothing,
};

const KEYS: &[Key] = &[
    key("attention.key_length", "head_dim"),
    key("attention.sliding_window", "sliding_window"),
    key("attn_logit_softcapping", "attn_logit_softcapping"),
    key("final_logit_softcapping", "final_logit_softcapping"),
    key("rope.freq_base_swa", "rope_local_base_freq"),
];

pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    keys: KEYS,
    layer: LATER,
    rest: |draft| scale(draft, 46),
    ..GEMMA
};

/// The text model: what sees images lies in a file of its own.
pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    keys: KEYS,
    layer: LATER,
    rest: |draft| scale(draft, 62),
    ..GEMMA
};

/// Scores are scaled by the size of a head, or in the model of 27B, which is known by its layers, by the width that a head
/// has on the average: no key tells, and llama.cpp does the same.
fn scale(draft: &mut Draft<'_>, layers_of_27b: u64) -> Result<(), CheckpointError> {
    let [layers, hidden, heads] =
        ["num_hidden_layers", "hidden_size", "num_attention_heads"].map(|key| draft.size(key));
    let average = hidden / heads.max(1);
    let head_dim = if draft.is_set("head_dim") { draft.size("head_dim") } else { average };
    let scalar = if layers == layers_of_27b { average } else { head_dim };
    draft.set("query_pre_attn_scalar", json!(scalar));
    // Where no head is of the family's usual size, one has its share.
    draft.set("head_dim", json!(head_dim));
    Ok(())
}
