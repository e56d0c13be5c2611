//! `config.json`: typed access to its keys, and the spellings that transformers 4 and 5 use.

use super::error::CheckpointError;
use dijiang_passes::ir::dtype::DType;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A `config.json`. A key that holds null counts as absent.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    values: Map<String, Value>,
}

/// Rotary position embedding as a config describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RopeConfig {
    pub(super) theta: f64,
    /// The share of a head's features that is rotated.
    pub(super) partial: f64,
    pub(super) scaling: RopeScaling,
}

/// How rotary frequencies are changed for contexts longer than those trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Long wavelengths are divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

const ROPE_TYPES: &str = "default, linear, llama3";

impl Config {
    /// Reads a file that must hold one JSON object.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text =
            std::fs::read(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        let values = serde_json::from_slice(&text)
            .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), values })
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, in the order of the file.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    fn top(&self) -> Section<'_> {
        Section { path: &self.path, prefix: "", values: &self.values }
    }

    /// A non-negative integer that must be there.
    pub(super) fn u64(&self, key: &str) -> Result<u64, CheckpointError> {
        self.top().need(key, self.opt_u64(key)?, "a non-negative integer")
    }

    /// A positive integer that must be there: a size or a count.
    pub(super) fn size(&self, key: &str) -> Result<u64, CheckpointError> {
        let n = self.u64(key)?;
        if n == 0 { Err(self.bad(key, "0", "a positive integer")) } else { Ok(n) }
    }

    pub(super) fn opt_u64(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        self.top().get(key, "a non-negative integer", Value::as_u64)
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        Ok(self.top().f64(key)?.unwrap_or(default))
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        Ok(self.top().get(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn str(&self, key: &str) -> Result<&str, CheckpointError> {
        self.top().need(key, self.top().str(key)?, "a string")
    }

    pub(super) fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, CheckpointError> {
        Ok(self.top().str(key)?.unwrap_or(default))
    }

    /// A token id, or several: `eos_token_id` may be a list.
    pub(super) fn tokens(&self, key: &str) -> Result<Vec<u64>, CheckpointError> {
        let ids = |v: &Value| match v {
            Value::Array(ids) => ids.iter().map(Value::as_u64).collect(),
            // transformers writes -1 for "none" in some old configs.
            v if v.as_i64() == Some(-1) => Some(Vec::new()),
            v => Some(vec![v.as_u64()?]),
        };
        Ok(self.top().get(key, "a token id or a list of token ids", ids)?.unwrap_or_default())
    }

    /// The first id of [`Self::tokens`].
    pub(super) fn token(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        Ok(self.tokens(key)?.first().copied())
    }

    /// The element type under `dtype` (transformers 5) or `torch_dtype` (4), where one is given.
    pub(super) fn dtype(&self) -> Result<Option<DType>, CheckpointError> {
        let key = if self.values.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        let Some(name) = self.top().str(key)? else { return Ok(None) };
        match name.trim_start_matches("torch.") {
            "float32" | "float" => Ok(Some(DType::F32)),
            "float16" | "half" => Ok(Some(DType::F16)),
            "bfloat16" => Ok(Some(DType::BF16)),
            _ => Err(self.unsupported(key, name, "float32, float16, bfloat16")),
        }
    }

    /// Rotary settings: `rope_parameters` (transformers 5), or `rope_theta`, `rope_scaling` and
    /// `rotary_pct` (4). `partial` is the family's own share where none is given.
    pub(super) fn rope(&self, partial: f64) -> Result<RopeConfig, CheckpointError> {
        let top = self.top();
        let new = top.section("rope_parameters")?;
        let first = |keys: &[(Option<&Section<'_>>, &str)]| {
            keys.iter().find_map(|(section, key)| section.as_ref()?.f64(key).transpose()).transpose()
        };
        let top = Some(&top);
        // GPT-NeoX sets `rope_theta` from `rotary_emb_base`, so that one wins where both are there.
        let theta = first(&[(new.as_ref(), "rope_theta"), (top, "rotary_emb_base"), (top, "rope_theta")])?;
        let share = first(&[
            (new.as_ref(), "partial_rotary_factor"),
            (top, "rotary_pct"),
            (top, "partial_rotary_factor"),
        ])?;
        Ok(RopeConfig {
            theta: theta.unwrap_or(10000.0),
            partial: share.unwrap_or(partial),
            scaling: self.rope_scaling(new)?,
        })
    }

    fn rope_scaling(&self, new: Option<Section<'_>>) -> Result<RopeScaling, CheckpointError> {
        let section = match new {
            Some(section) => Some(section),
            None => self.top().section("rope_scaling")?,
        };
        let Some(section) = section else { return Ok(RopeScaling::None) };
        // `type` is the older spelling.
        let (key, kind) = match section.str("rope_type")? {
            Some(kind) => ("rope_type", kind),
            None => ("type", section.str("type")?.unwrap_or("default")),
        };
        let number = |key: &str| section.need(key, section.f64(key)?, "a number");
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
            "llama3" => {
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if high <= low {
                    let expected = format!("more than low_freq_factor = {low}");
                    return Err(self.bad(&section.full("high_freq_factor"), &high.to_string(), &expected));
                }
                let original = number("original_max_position_embeddings")?;
                Ok(RopeScaling::Llama3 { factor: number("factor")?, low, high, original })
            }
            other => Err(self.unsupported(&section.full(key), other, ROPE_TYPES)),
        }
    }

    pub(super) fn bad(&self, key: &str, found: &str, expected: &str) -> CheckpointError {
        CheckpointError::BadKey {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn unsupported(&self, key: &str, found: &str, supported: &str) -> CheckpointError {
        CheckpointError::Unsupported {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            supported: supported.to_owned(),
        }
    }
}

/// The keys of the file, or of an object inside it.
struct Section<'a> {
    path: &'a Path,
    prefix: &'static str,
    values: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// `rope_scaling.factor`
    fn full(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.values.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let bad = || CheckpointError::BadKey {
            path: self.path.to_owned(),
            key: self.full(key),
            found: shortened(value),
            expected: expected.to_owned(),
        };
        read(value).map(Some).ok_or_else(bad)
    }

    fn need<T>(&self, key: &str, value: Option<T>, expected: &'static str) -> Result<T, CheckpointError> {
        let missing =
            || CheckpointError::MissingKey { path: self.path.to_owned(), key: self.full(key), expected };
        value.ok_or_else(missing)
    }

    fn f64(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.get(key, "a number", Value::as_f64)
    }

    fn str(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.get(key, "a string", Value::as_str)
    }

    fn section(&self, key: &'static str) -> Result<Option<Section<'a>>, CheckpointError> {
        let values = self.get(key, "an object", Value::as_object)?;
        Ok(values.map(|values| Section { path: self.path, prefix: key, values }))
    }
}

/// A value as an error shows it: on one line and not too long.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain("…".chars()).collect()
}
