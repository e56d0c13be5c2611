//! The shapes: what `config.json` of the published models says, one row each.

use serde_json::{Value, json};

/// A published model, apart from its weights.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    family: Family,
    hidden: u64,
    pub layers: u64,
    heads: u64,
    kv_heads: u64,
    intermediate: u64,
    vocab: u64,
    positions: u64,
}

#[derive(Debug, Clone, Copy)]
enum Family {
    Pythia,
    Opt,
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

macro_rules! shapes {
    ($($name:literal $family:ident $hidden:literal $layers:literal $heads:literal $kv:literal $inner:literal $vocab:literal $positions:literal;)*) => {
        /// Every shape, small to large within a family.
        pub const SHAPES: &[Shape] = &[$(Shape {
            name: $name,
            family: Family::$family,
            hidden: $hidden,
            layers: $layers,
            heads: $heads,
            kv_heads: $kv,
            intermediate: $inner,
            vocab: $vocab,
            positions: $positions,
        }),*];
    };
}

// name, family, hidden, layers, heads, key/value heads, intermediate, vocabulary, positions
shapes! {
    "pythia-70m" Pythia 512 6 8 8 2048 50304 2048;
    "pythia-160m" Pythia 768 12 12 12 3072 50304 2048;
    "pythia-410m" Pythia 1024 24 16 16 4096 50304 2048;
    "pythia-1b" Pythia 2048 16 8 8 8192 50304 2048;
    "pythia-1.4b" Pythia 2048 24 16 16 8192 50304 2048;
    "pythia-2.8b" Pythia 2560 32 32 32 10240 50304 2048;
    "opt-350m" Opt 1024 24 16 16 4096 50272 2048;
    "tinyllama-1.1b" Llama 2048 22 32 4 5632 32000 2048;
    "llama2-7b" Llama 4096 32 32 32 11008 32000 4096;
    "qwen2.5-0.5b" Qwen2 896 24 14 2 4864 151_936 32768;
    "qwen3-0.6b" Qwen3 1024 28 16 8 3072 151_936 40960;
    "gemma3-1b" Gemma3 1152 26 4 1 6912 262_144 32768;
}

/// The shape of this name.
pub fn find(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| shape.name == name)
}

impl Shape {
    /// `config.json` as `save_pretrained` writes it; `dtype` as torch calls it.
    pub fn config(&self, layers: u64, dtype: &str) -> Value {
        let mut config = match self.family {
            Family::Pythia => self.pythia(),
            Family::Opt => self.opt(),
            Family::Llama => self.llama(),
            Family::Qwen2 => self.qwen2(),
            Family::Qwen3 => self.qwen3(),
            Family::Gemma3 => self.gemma3(),
        };
        let common = json!({
            "hidden_size": self.hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "torch_dtype": dtype,
            "use_cache": true,
        });
        if let (Some(config), Value::Object(common)) = (config.as_object_mut(), common) {
            config.extend(common);
        }
        config
    }

    fn pythia(&self) -> Value {
        json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "gelu",
            "intermediate_size": self.intermediate,
            "layer_norm_eps": 1e-5,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": false,
            "use_parallel_residual": true,
        })
    }

    /// The one OPT with narrow embeddings and norms after the blocks.
    fn opt(&self) -> Value {
        json!({
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "activation_function": "relu",
            "do_layer_norm_before": false,
            "enable_bias": true,
            "ffn_dim": self.intermediate,
            "word_embed_proj_dim": 512,
        })
    }

    fn llama(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "intermediate_size": self.intermediate,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        })
    }

    fn qwen2(&self) -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "bos_token_id": 151_643,
            "eos_token_id": 151_643,
            "hidden_act": "silu",
            "intermediate_size": self.intermediate,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": true,
            "use_sliding_window": false,
        })
    }

    fn qwen3(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": false,
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
            "head_dim": 128,
            "hidden_act": "silu",
            "intermediate_size": self.intermediate,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": true,
            "use_sliding_window": false,
        })
    }

    fn gemma3(&self) -> Value {
        json!({
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attention_bias": false,
            "bos_token_id": 2,
            "eos_token_id": [1, 106],
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "intermediate_size": self.intermediate,
            "num_key_value_heads": self.kv_heads,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000,
            "rope_theta": 1_000_000.0,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        })
    }
}
