//! Checkpoints that are no decoders with softmax attention and weights as numbers, by the names under which they come,
//! each with the reason and what to do instead.

use super::config::Config;
use super::error::CheckpointError;
use serde_json::Value;

/// Names of one kind, and why none of them is read.
struct Kind {
    model_types: &'static [&'static str],
    why: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        model_types: &[
            "afmoe",
            "cohere2_moe",
            "dbrx",
            "deepseek",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "deepseek_v4",
            "dots1",
            "ernie4_5_moe",
            "exaone_moe",
            "flex_olmo",
            "glm4_moe",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "gpt_oss",
            "granitemoe",
            "granitemoeshared",
            "grok-1",
            "hunyuan_v1_moe",
            "jetmoe",
            "kimi_k2",
            "mistral4",
            "mixtral",
            "olmoe",
            "phimoe",
            "qwen2_moe",
            "qwen3_moe",
        ],
        why: "a mixture of experts: which weights a token meets is decided by a router, and no family here has one (hint: convert a dense model)",
    },
    Kind {
        model_types: &[
            "aya_vision",
            "cohere2_vision",
            "deepseek_vl",
            "ernie4_5_vl_moe",
            "gemma3",
            "gemma3n",
            "gemma4",
            "glm4v",
            "glm4v_moe",
            "idefics",
            "idefics2",
            "idefics3",
            "internvl",
            "kimi_vl",
            "llama4",
            "llava",
            "llava_next",
            "llava_onevision",
            "minicpmv",
            "mistral3",
            "mllama",
            "paligemma",
            "phi3_v",
            "phi4_multimodal",
            "phi4mm",
            "pixtral",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_omni_moe",
            "qwen3_vl",
            "qwen3_vl_moe",
            "smolvlm",
        ],
        why: VISION,
    },
    Kind {
        model_types: &[
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "lfm2",
            "lfm2_moe",
            "mamba",
            "mamba2",
            "minimax",
            "nemotron_h",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_next",
            "recurrent_gemma",
            "retnet",
            "rwkv",
            "rwkv7",
            "xlstm",
            "zamba",
            "zamba2",
        ],
        why: "linear attention, convolutions or state-space layers in place of softmax attention already: its state is constant as it is, and there is nothing to convert",
    },
    Kind {
        model_types: &[
            "bart",
            "blenderbot",
            "led",
            "longt5",
            "m2m_100",
            "marian",
            "mbart",
            "mt5",
            "pegasus",
            "seamless_m4t",
            "speech_to_text",
            "t5",
            "t5gemma",
            "umt5",
            "whisper",
        ],
        why: ENCODER_DECODER,
    },
    Kind {
        model_types: &[
            "albert",
            "beit",
            "bert",
            "camembert",
            "clip",
            "deberta",
            "deberta-v2",
            "deit",
            "dinov2",
            "distilbert",
            "electra",
            "ernie",
            "longformer",
            "modernbert",
            "mpnet",
            "nomic_bert",
            "roberta",
            "siglip",
            "vit",
            "wav2vec2",
            "xlm-roberta",
        ],
        why: "an encoder, and checkpoints are read of decoders alone (hint: export it to ONNX with optimum or its own code, and convert that)",
    },
    Kind {
        model_types: &["bloom", "mpt"],
        why: "its positions are a bias on the scores by distance (ALiBi), for which there is no linear attention here (hint: convert a model with rotary or learned positions)",
    },
];

const VISION: &str = "a vision-language model, and text models alone are read (hint: load it with transformers, `save_pretrained` its language model, and convert that where its model_type is supported)";

const ENCODER_DECODER: &str = "an encoder-decoder, and checkpoints are read of decoders alone (hint: export it to ONNX with optimum or its own code, and convert that)";

const QUANTISED: &str = "quantised weights are not read (hint: convert the model that was quantised, and put its weights in 4 bits with `--weights int4`; or load it with transformers, `dequantize()` and `save_pretrained` it)";

/// Refuses what is known by name, and weights that are no plain numbers.
pub(super) fn check(config: &Config, model_type: &str) -> Result<(), CheckpointError> {
    if let Some(kind) = KINDS.iter().find(|kind| kind.model_types.contains(&model_type)) {
        return Err(config.refused("model_type", model_type, kind.why));
    }
    check_quantised(config)?;
    if config.values().contains_key("vision_config") {
        return Err(config.refused("model_type", model_type, VISION));
    }
    match config.values().get("is_encoder_decoder").and_then(Value::as_bool) {
        Some(true) => Err(config.refused("model_type", model_type, ENCODER_DECODER)),
        _ => Ok(()),
    }
}

fn check_quantised(config: &Config) -> Result<(), CheckpointError> {
    let Some(how) = config.value("quantization_config") else { return Ok(()) };
    if how.as_object().is_some_and(serde_json::Map::is_empty) {
        return Ok(());
    }
    let method = how.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
    Err(config.refused("quantization_config.quant_method", method, QUANTISED))
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|kind| kind.model_types).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_stands_twice() {
        assert_eq!(names().collect::<BTreeSet<_>>().len(), names().count());
    }

    #[test]
    fn names_of_a_kind_are_in_order() {
        for kind in KINDS {
            assert!(kind.model_types.is_sorted(), "{:?}", kind.model_types);
        }
    }

    #[test]
    fn every_reason_is_told_in_one_line() {
        for name in names() {
            let error = check(&Config::of_values(&json!({})), name).expect_err("it is refused").to_string();
            assert!(error.starts_with(&format!("config.json: model_type is `{name}`: ")), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(check(&Config::of_values(&json!({})), "llama").is_ok());
    }

    #[test]
    fn a_model_is_known_by_what_its_config_holds() {
        let refused = |values: Value| check(&Config::of_values(&values), "new").map_err(|e| e.to_string());
        let message = refused(json!({"vision_config": {}, "text_config": {}})).expect_err("it is refused");
        assert!(message.contains("a vision-language model"), "{message}");
        let message = refused(json!({"is_encoder_decoder": true})).expect_err("it is refused");
        assert!(message.contains("an encoder-decoder"), "{message}");
        assert_eq!(refused(json!({"is_encoder_decoder": false, "quantization_config": {}})), Ok(()));
        for method in ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4"] {
            let values = json!({"quantization_config": {"quant_method": method}});
            let message = refused(values).expect_err("it is refused");
            assert!(message.starts_with(&format!("config.json: quantization_config.quant_method is `{method}`: quantised weights are not read")), "{message}");
        }
    }
}
