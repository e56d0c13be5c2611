//! Keys of a config that no family asks for: those that mean another model are refused, those that mean nothing to the
//! numbers are passed over, and whatever else there is is told.

use super::config::{Config, shortened};
use super::error::{CheckpointError, SHOWN};
use crate::report::message::shown;
use serde_json::{Value, json};

/// A key with which other code computes something else, and whether a value leaves the model as it is.
struct Changing {
    key: &'static str,
    harmless: fn(&Value) -> bool,
    supported: &'static str,
}

fn is_off(value: &Value) -> bool {
    *value == json!(false)
}

fn is_on(value: &Value) -> bool {
    *value == json!(true)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_at_most_one(value: &Value) -> bool {
    value.as_u64().is_some_and(|n| n <= 1)
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

fn is_full(value: &Value) -> bool {
    value.as_array().is_some_and(|layers| layers.iter().all(|layer| layer == "full_attention"))
}

fn never(_: &Value) -> bool {
    false
}

const CHANGING: &[Changing] = &[
    Changing { key: "add_cross_attention", harmless: is_off, supported: "false" },
    Changing { key: "alibi", harmless: is_off, supported: "false" },
    Changing { key: "apply_residual_connection_post_layernorm", harmless: is_off, supported: "false" },
    Changing { key: "attention_multiplier", harmless: never, supported: "no such key" },
    Changing { key: "attn_logit_softcapping", harmless: never, supported: "null" },
    Changing { key: "clip_qkv", harmless: never, supported: "null" },
    Changing { key: "embedding_multiplier", harmless: is_one, supported: "1" },
    Changing { key: "final_logit_softcapping", harmless: never, supported: "null" },
    Changing { key: "is_causal", harmless: is_on, supported: "true (an embedding model attends both ways)" },
    Changing { key: "is_encoder_decoder", harmless: is_off, supported: "false" },
    Changing { key: "layer_types", harmless: is_full, supported: "full_attention in every layer" },
    Changing { key: "lm_head_bias", harmless: is_off, supported: "false" },
    Changing { key: "logit_scale", harmless: is_one, supported: "1" },
    Changing { key: "logits_scaling", harmless: is_one, supported: "1" },
    Changing { key: "no_rope_layers", harmless: is_empty, supported: "[]" },
    Changing { key: "num_local_experts", harmless: is_at_most_one, supported: "0, 1" },
    Changing {
        key: "partial_rotary_factor",
        harmless: is_one,
        supported: "1 (this family rotates whole heads)",
    },
    Changing { key: "pruned_heads", harmless: is_empty, supported: "{}" },
    Changing { key: "qk_layernorm", harmless: is_off, supported: "false" },
    Changing { key: "qk_norm", harmless: is_off, supported: "false" },
    Changing { key: "residual_multiplier", harmless: is_one, supported: "1" },
    Changing { key: "rope_interleaved", harmless: is_off, supported: "false" },
    Changing { key: "scale_attn_by_inverse_layer_idx", harmless: is_off, supported: "false" },
    Changing { key: "sliding_window", harmless: never, supported: "null (attention to all positions)" },
    Changing { key: "use_bidirectional_attention", harmless: is_off, supported: "false" },
    Changing { key: "use_mrope", harmless: is_off, supported: "false" },
    Changing { key: "use_qk_norm", harmless: is_off, supported: "false" },
    Changing { key: "use_sliding_window", harmless: is_off, supported: "false" },
];

/// Keys that training, generation or other tools read: the logits do not depend on them.
const NEUTRAL: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_from_model_config",
    "_model_name_or_path",
    "_name_or_path",
    "_sliding_window_pattern",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "begin_suppress_tokens",
    "bad_words_ids",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "early_stopping",
    "embd_pdrop",
    "embedding_dropout",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "init_std",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "layerdrop",
    "length_penalty",
    "max_length",
    "max_position_embeddings",
    "min_length",
    "model_type",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "remove_invalid_values",
    "repetition_penalty",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Looks at what is left of a config once a model is built. Returns what is to be told of it.
pub(super) fn check(config: &Config, family: &'static str) -> Result<Option<String>, CheckpointError> {
    let unread = config.unread();
    for Changing { key, harmless, supported } in CHANGING {
        let found = unread.iter().find(|(name, value)| name == key && !harmless(value));
        // Turned off by its own switch, as Qwen writes it.
        let is_off = *key == "sliding_window" && config.value("use_sliding_window").is_some_and(is_off);
        if let Some((_, value)) = found.filter(|_| !is_off) {
            return Err(config.unsupported(key, &shortened(value), supported));
        }
    }
    let is_known = |key: &str| NEUTRAL.contains(&key) || CHANGING.iter().any(|c| c.key == key);
    let unknown: Vec<&str> = unread.iter().map(|(key, _)| *key).filter(|key| !is_known(key)).collect();
    if unknown.is_empty() {
        return Ok(None);
    }
    let named: Vec<String> = unknown.iter().take(SHOWN).map(|key| format!("`{}`", shown(key))).collect();
    let more = match unknown.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let path = config.path().display();
    Ok(Some(format!(
        "{path}: {}{more}: {family} reads no such key, and the model is built without",
        named.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_of_two_kinds() {
        let mut all: Vec<&str> = CHANGING.iter().map(|c| c.key).chain(NEUTRAL.iter().copied()).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }
}
