//! `config.json`: typed access to its keys, and the spellings that transformers 4 and 5 use.

use super::error::CheckpointError;
use crate::report::message::shown;
use dijiang_format::dtype::DType;
use dijiang_format::regular;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A `config.json`. A key that holds null counts as absent.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    values: Map<String, Value>,
    asked: Asked,
}

/// The keys that were asked for, so that one that nobody asks for is not passed over in silence.
#[derive(Debug, Clone, Default)]
struct Asked(Arc<Mutex<BTreeSet<String>>>);

impl Asked {
    fn add(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
    }

    fn has(&self, key: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

const SIZE: &str = "a positive integer below 2^31";

impl Config {
    /// Reads a file that must hold one JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text =
            regular::read(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// The same of a text; `path` is what errors name.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let values = serde_json::from_slice(text)
            .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        Ok(Self::of(path, values))
    }

    /// These values; `path` is what errors name.
    pub(super) fn of(path: &Path, values: Map<String, Value>) -> Self {
        Self { path: path.to_owned(), values, asked: Asked::default() }
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file by its name alone, as a message shows it.
    pub(super) fn name(&self) -> String {
        shown(&self.path.file_name().unwrap_or_default().to_string_lossy())
    }

    /// All keys, in the order of the file.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    pub(super) fn top(&self) -> Section<'_> {
        Section { path: &self.path, prefix: String::new(), values: &self.values, asked: &self.asked }
    }

    /// The keys with a value that nobody has asked for so far, in the order of the file.
    pub(super) fn unread(&self) -> Vec<(&str, &Value)> {
        self.top().unread()
    }

    /// The value of a key, whatever it is.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.asked.add(key);
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A size or a count that must be there.
    pub(super) fn size(&self, key: &str) -> Result<u64, CheckpointError> {
        self.top().need(key, self.opt_size(key)?, SIZE)
    }

    pub(crate) fn opt_size(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        // Bounded, so that products of two sizes can be counted.
        self.top().get(key, SIZE, |v| v.as_u64().filter(|n| (1..1 << 31).contains(n)))
    }

    /// A number of things, which may be none.
    pub(super) fn count_or(&self, key: &str, default: u64) -> Result<u64, CheckpointError> {
        Ok(self.top().get(key, "a count", Value::as_u64)?.unwrap_or(default))
    }

    pub(super) fn opt_f64(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.top().f64(key)
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        Ok(self.top().f64(key)?.unwrap_or(default))
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        self.top().bool_or(key, default)
    }

    pub(crate) fn str(&self, key: &str) -> Result<&str, CheckpointError> {
        self.top().need(key, self.top().str(key)?, "a string")
    }

    pub(super) fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, CheckpointError> {
        Ok(self.top().str(key)?.unwrap_or(default))
    }

    /// A token id, or several: `eos_token_id` may be a list.
    pub(crate) fn tokens(&self, key: &str) -> Result<Vec<u64>, CheckpointError> {
        let ids = |v: &Value| match v {
            Value::Array(ids) => ids.iter().map(Value::as_u64).collect(),
            // transformers writes -1 for "none" in some old configs.
            v if v.as_i64() == Some(-1) => Some(Vec::new()),
            v => Some(vec![v.as_u64()?]),
        };
        Ok(self.top().get(key, "a token id or a list of token ids", ids)?.unwrap_or_default())
    }

    /// The first id of [`Self::tokens`].
    pub(crate) fn token(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
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

    pub(super) fn contradiction(
        &self,
        key: &str,
        found: &dyn fmt::Display,
        other: &str,
        stated: &dyn fmt::Display,
    ) -> CheckpointError {
        CheckpointError::Contradiction {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_string(),
            other: other.to_owned(),
            stated: stated.to_string(),
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

    /// What a key asks for cannot be had, and why.
    pub(super) fn refused(&self, key: &str, found: &str, why: &str) -> CheckpointError {
        CheckpointError::Refused {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            why: why.to_owned(),
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

#[cfg(test)]
impl Config {
    /// Of a file of this object.
    pub(super) fn of_values(values: &Value) -> Self {
        let values = values.as_object().expect("an object").clone();
        Self { path: "config.json".into(), values, asked: Asked::default() }
    }
}

/// The keys of the file, or of an object inside it.
pub(super) struct Section<'a> {
    path: &'a Path,
    prefix: String,
    pub(super) values: &'a Map<String, Value>,
    asked: &'a Asked,
}

impl<'a> Section<'a> {
    /// `rope_scaling.factor`
    pub(super) fn full(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        self.asked.add(&self.full(key));
        let Some(value) = self.values.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let bad = || CheckpointError::BadKey {
            path: self.path.to_owned(),
            key: self.full(key),
            found: shortened(value),
            expected: expected.to_owned(),
        };
        read(value).map(Some).ok_or_else(bad)
    }

    pub(super) fn need<T>(
        &self,
        key: &str,
        value: Option<T>,
        expected: &'static str,
    ) -> Result<T, CheckpointError> {
        let missing =
            || CheckpointError::MissingKey { path: self.path.to_owned(), key: self.full(key), expected };
        value.ok_or_else(missing)
    }

    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.get(key, "a number", Value::as_f64)
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.get(key, "a positive number", |v| v.as_f64().filter(|x| *x > 0.0))
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.get(key, "a string", Value::as_str)
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        Ok(self.get(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn positives(&self, key: &str) -> Result<Option<Vec<f64>>, CheckpointError> {
        let positive = |v: &Value| v.as_f64().filter(|x| *x > 0.0);
        self.get(key, "a list of positive numbers", |v| v.as_array()?.iter().map(positive).collect())
    }

    pub(super) fn section(&self, key: &str) -> Result<Option<Section<'a>>, CheckpointError> {
        let values = self.get(key, "an object", Value::as_object)?;
        Ok(values.map(|values| Section {
            path: self.path,
            prefix: self.full(key),
            values,
            asked: self.asked,
        }))
    }

    pub(super) fn unread(&self) -> Vec<(&'a str, &'a Value)> {
        let set = self.values.iter().filter(|(_, value)| !value.is_null());
        set.map(|(key, value)| (key.as_str(), value))
            .filter(|(key, _)| !self.asked.has(&self.full(key)))
            .collect()
    }
}

/// A value as an error shows it: on one line and not too long.
pub(super) fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(values: &Value) -> Config {
        Config::of_values(values)
    }

    fn error<T: std::fmt::Debug>(result: Result<T, CheckpointError>) -> String {
        result.expect_err("an error").to_string()
    }

    #[test]
    fn keys_are_unread_until_they_are_asked_for() {
        let config = config(&json!({"a": null, "b": 1, "c": 2}));
        config.opt_size("b").expect("a size");
        assert_eq!(config.unread(), [("c", &json!(2))]);
    }

    #[test]
    fn both_spellings_of_the_element_type_are_read() {
        let dtype = |values: Value| config(&values).dtype();
        assert_eq!(dtype(json!({})).expect("nothing stated"), None);
        assert_eq!(dtype(json!({"torch_dtype": "float16"})).expect("a type"), Some(DType::F16));
        assert_eq!(dtype(json!({"dtype": "bfloat16"})).expect("a type"), Some(DType::BF16));
        assert_eq!(dtype(json!({"torch_dtype": "torch.float32"})).expect("a type"), Some(DType::F32));
        assert_eq!(
            error(dtype(json!({"dtype": "float8_e4m3fn"}))),
            "config.json: dtype `float8_e4m3fn` is not supported; supported: float32, float16, bfloat16"
        );
    }

    #[test]
    fn token_ids_may_be_one_or_several_or_none() {
        let tokens = |value: Value| config(&json!({"eos_token_id": value})).tokens("eos_token_id");
        assert_eq!(tokens(json!(2)).expect("ids"), [2]);
        assert_eq!(tokens(json!([2, 3])).expect("ids"), [2, 3]);
        assert!(tokens(json!(null)).expect("ids").is_empty());
        assert!(tokens(json!(-1)).expect("ids").is_empty());
        assert_eq!(
            error(tokens(json!("</s>"))),
            "config.json: key `eos_token_id` is \"</s>\"; expected a token id or a list of token ids"
        );
    }

    #[test]
    fn sizes_are_positive_and_bounded() {
        for bad in [json!(0), json!(-4), json!(1.5), json!("4"), json!(1u64 << 40)] {
            let message = error(config(&json!({"hidden_size": bad})).size("hidden_size"));
            let expected =
                format!("config.json: key `hidden_size` is {bad}; expected a positive integer below 2^31");
            assert_eq!(message, expected);
        }
        assert_eq!(
            error(config(&json!({})).size("hidden_size")),
            "config.json: key `hidden_size` is missing; expected a positive integer below 2^31"
        );
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let message = error(config(&json!({"hidden_act": vec![1; 1000]})).str("hidden_act"));
        assert!(message.len() < 160, "{message}");
    }
}
