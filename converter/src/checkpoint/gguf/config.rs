//! The metadata of a GGUF file as the `config.json` that its model would have.

use super::architectures::{Architecture, Epsilon, Key};
use super::error::GgufError;
use super::header::Header;
use super::tensors::Heads;
use super::value::Value;
use super::{rope, tokens};
use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use serde_json::{Map, Value as Json, json};

/// A config that is being filled.
pub(super) struct Draft<'a> {
    pub(super) header: &'a Header,
    pub(super) architecture: &'static Architecture,
    values: Map<String, Json>,
    notes: Vec<String>,
    /// Keys that were asked for.
    read: Vec<String>,
}

/// What was made of the metadata.
pub(super) struct Described {
    pub(super) config: Config,
    pub(super) heads: Heads,
    pub(super) notes: Vec<String>,
}

/// Keys that any architecture may have. Families that know no such thing refuse them.
const COMMON: &[Key] = &[
    Key { gguf: "attention.sliding_window", config: "sliding_window" },
    Key { gguf: "attention.scale", config: "attention_multiplier" },
    Key { gguf: "attention.clamp_kqv", config: "clip_qkv" },
    Key { gguf: "attention.max_alibi_bias", config: "alibi" },
    Key { gguf: "attn_logit_softcapping", config: "attn_logit_softcapping" },
    Key { gguf: "final_logit_softcapping", config: "final_logit_softcapping" },
    Key { gguf: "logit_scale", config: "logit_scale" },
    Key { gguf: "embedding_scale", config: "embedding_multiplier" },
    Key { gguf: "residual_scale", config: "residual_multiplier" },
    Key { gguf: "expert_count", config: "num_local_experts" },
];

/// Keys that change nothing.
const NEUTRAL: &[&str] =
    &["vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned", "expert_used_count"];

const HEAD_DIM: &str = "head_dim";

/// Reads the config out of the metadata.
pub(super) fn describe(
    header: &Header,
    architecture: &'static Architecture,
) -> Result<Described, CheckpointError> {
    let mut draft = Draft { header, architecture, values: Map::new(), notes: Vec::new(), read: Vec::new() };
    draft.set("model_type", json!(architecture.model_type));
    draft.sizes()?;
    draft.keys()?;
    draft.heads()?;
    rope::describe(&mut draft)?;
    tokens::describe(&mut draft)?;
    draft.set("tie_word_embeddings", json!(!header.has("output.weight")));
    (architecture.rest)(&mut draft)?;
    draft.others();
    let heads = Heads::of(&draft);
    let place = header.path.display();
    let notes = draft.notes.iter().map(|note| format!("{place}: {note}")).collect();
    Ok(Described { config: Config::of(&header.path, draft.values), heads, notes })
}

impl Draft<'_> {
    pub(super) fn set(&mut self, key: &str, value: Json) {
        self.values.insert(key.to_owned(), value);
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// A size that was set, 0 where none was.
    pub(super) fn size(&self, key: &str) -> u64 {
        self.values.get(key).and_then(Json::as_u64).unwrap_or_default()
    }

    pub(super) fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// `llama.rope.freq_base`
    pub(super) fn key(&mut self, name: &str) -> String {
        let key = format!("{}.{name}", self.architecture.name);
        self.read.push(key.clone());
        key
    }

    pub(super) fn count(&mut self, name: &str) -> Result<Option<u64>, CheckpointError> {
        let key = self.key(name);
        self.header.count(&key)
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, CheckpointError> {
        let key = self.key(name);
        self.header.number(&key)
    }

    fn need<T>(&self, value: Option<T>, name: &str, expected: &'static str) -> Result<T, CheckpointError> {
        let key = format!("{}.{name}", self.architecture.name);
        let missing = || GgufError::MissingKey { path: self.header.path.clone(), key, expected };
        Ok(value.ok_or_else(missing)?)
    }

    fn sizes(&mut self) -> Result<(), CheckpointError> {
        let sizes = self.architecture.sizes;
        let all = [
            ("block_count", sizes.layers),
            ("embedding_length", sizes.hidden),
            ("attention.head_count", sizes.heads),
            ("feed_forward_length", sizes.width),
            ("context_length", sizes.positions),
        ];
        for (name, config) in all {
            let count = self.count(name)?;
            let count = self.need(count, name, "a positive integer")?;
            self.set(config, json!(count));
        }
        if let (Some(config), count) = (sizes.kv_heads, self.count("attention.head_count_kv")?) {
            let count = count.unwrap_or_else(|| self.size(sizes.heads));
            self.set(config, json!(count));
        }
        let (name, config) = match sizes.norm {
            Epsilon::Rms(config) => ("attention.layer_norm_rms_epsilon", config),
            Epsilon::Layer(config) => ("attention.layer_norm_epsilon", config),
        };
        let epsilon = self.number(name)?;
        let epsilon = self.need(epsilon, name, "a number")?;
        self.set(config, json!(epsilon));
        // The rows that there are count: some files say nothing of them, and some were padded.
        if let Some([rows, _]) = self.header.tensors.get("token_embd.weight").map(|raw| raw.dims.as_slice()) {
            self.set("vocab_size", json!(rows));
        }
        Ok(())
    }

    fn keys(&mut self) -> Result<(), CheckpointError> {
        for Key { gguf, config } in self.architecture.keys.iter().chain(COMMON) {
            let key = format!("{}.{gguf}", self.architecture.name);
            if *gguf == rope::SHARE || self.read.contains(&key) {
                continue;
            }
            self.read.push(key.clone());
            let value = match self.header.values.get(&key) {
                None => continue,
                Some(Value::Bool(flag)) => json!(flag),
                // Of a bias by distance there is no more to tell than that there is one.
                Some(_) if *config == "alibi" => match self.header.number(&key)? {
                    Some(0.0) | None => Json::Null,
                    Some(_) => json!(true),
                },
                Some(Value::Int(_) | Value::Ints(_)) => match self.header.count(&key)? {
                    Some(0) | None => Json::Null,
                    Some(count) => json!(count),
                },
                Some(_) => match self.header.number(&key)? {
                    Some(0.0) | None => Json::Null,
                    Some(number) => json!(number),
                },
            };
            self.set(config, value);
        }
        Ok(())
    }

    /// How many features a head has, and what is the same for all that are read.
    fn heads(&mut self) -> Result<(), CheckpointError> {
        const HINT: &str = "no family here computes such an attention; convert another model";
        let refused = |draft: &Self, key: &str, expected: &str| {
            let found = draft.header.values.get(key).cloned().unwrap_or(Value::Bool(false));
            Err(draft.header.refused(key, &found, expected, HINT))
        };
        let (head_dim, key) = (self.head_dim(), self.key("attention.key_length"));
        if self.header.count(&key)?.is_some_and(|n| n != head_dim) {
            return refused(self, &key, &format!("{head_dim}, the share of a head"));
        }
        let key = self.key("attention.value_length");
        if self.header.count(&key)?.is_some_and(|n| n != head_dim) {
            return refused(self, &key, &format!("{head_dim}, as long as the keys"));
        }
        let key = self.key("attention.causal");
        if self.header.flag(&key)? == Some(false) {
            return refused(self, &key, "true: decoders alone are read");
        }
        if self.architecture.keys.iter().any(|key| key.config == HEAD_DIM) {
            self.set(HEAD_DIM, json!(head_dim));
        }
        self.pattern()
    }

    /// Which layers have a window: every so many one that has none, or layer by layer.
    fn pattern(&mut self) -> Result<(), CheckpointError> {
        let key = self.key("attention.sliding_window_pattern");
        match self.header.values.get(&key) {
            Some(Value::Bools(slides)) => {
                let name = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
                self.set("layer_types", json!(slides.iter().map(name).collect::<Vec<_>>()));
            }
            Some(_) => {
                let each = self.header.count(&key)?;
                self.set("sliding_window_pattern", json!(each));
            }
            None => {}
        }
        Ok(())
    }

    /// What the file says, or else a head's share of the width.
    pub(super) fn head_dim(&self) -> u64 {
        let sizes = self.architecture.sizes;
        match self.size(HEAD_DIM) {
            0 => self.size(sizes.hidden) / self.size(sizes.heads).max(1),
            stated => stated,
        }
    }

    /// Keys of the architecture that nobody asked for. The config has them under their own names, so that they are told.
    fn others(&mut self) {
        const LONGEST: usize = 100;
        let prefix = format!("{}.", self.architecture.name);
        for (key, value) in &self.header.values {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            if self.read.contains(key) || NEUTRAL.contains(&name) {
                continue;
            }
            let value = value.json();
            let is_short = value.as_array().is_none_or(|list| list.len() <= LONGEST);
            let value = if is_short { value } else { json!("a long list") };
            self.values.insert(key.clone(), value);
        }
    }
}

/// Whether attention and MLP have biases.
pub(super) fn biases(draft: &mut Draft<'_>) -> Result<(), CheckpointError> {
    draft.set("attention_bias", json!(draft.header.has("blk.0.attn_q.bias")));
    draft.set("mlp_bias", json!(draft.header.has("blk.0.ffn_gate.bias")));
    Ok(())
}
