//! `config.json`: typed access to its keys, and the spellings that transformers 4 and 5 use.

use super::error::CheckpointError;
use dijiang_format::dtype::DType;
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

const SIZE: &str = "a positive integer below 2^31";
const ROPE_TYPES: &str = "default, linear, llama3";

impl Config {
    /// Reads a file that must hold one JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self, CheckpointError> {
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

    /// A size or a count that must be there.
    pub(super) fn size(&self, key: &str) -> Result<u64, CheckpointError> {
        self.top().need(key, self.opt_size(key)?, SIZE)
    }

    pub(crate) fn opt_size(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        // Bounded, so that products of two sizes can be counted.
        self.top().get(key, SIZE, |v| v.as_u64().filter(|n| (1..1 << 31).contains(n)))
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        Ok(self.top().f64(key)?.unwrap_or(default))
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        Ok(self.top().get(key, "true or false", Value::as_bool)?.unwrap_or(default))
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

    /// Rotary settings: `rope_parameters` (transformers 5), or `rope_theta`, `rope_scaling` and
    /// `rotary_pct` (4). `partial` is the family's own share where none is given.
    pub(super) fn rope(&self, partial: f64) -> Result<RopeConfig, CheckpointError> {
        let top = self.top();
        let new = top.section("rope_parameters")?;
        let first = |keys: &[(Option<&Section<'_>>, &str)]| {
            keys.iter().find_map(|(section, key)| section.as_ref()?.positive(key).transpose()).transpose()
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
        let number = |key: &str| section.need(key, section.positive(key)?, "a positive number");
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

    fn positive(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.get(key, "a positive number", |v| v.as_f64().filter(|x| *x > 0.0))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(values: &Value) -> Config {
        let values = values.as_object().expect("an object").clone();
        Config { path: "config.json".into(), values }
    }

    fn error<T: std::fmt::Debug>(result: Result<T, CheckpointError>) -> String {
        result.expect_err("an error").to_string()
    }

    #[test]
    fn both_spellings_of_rotary_settings_are_read() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 };
        let llama3 = json!({
            "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_type": "llama3",
        });
        let mut with_theta = llama3.clone();
        with_theta["rope_theta"] = json!(1000.0);
        let linear = RopeScaling::Linear { factor: 2.0 };
        let cases = [
            (json!({}), 10000.0, 0.5, RopeScaling::None),
            (json!({"rope_theta": 1e6, "rope_scaling": null}), 1e6, 0.5, RopeScaling::None),
            (json!({"rope_theta": 1000, "rope_scaling": llama3}), 1000.0, 0.5, scaling),
            (json!({"rope_parameters": with_theta}), 1000.0, 0.5, scaling),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), 10000.0, 0.5, linear),
            (json!({"rotary_emb_base": 5000, "rotary_pct": 1.0}), 5000.0, 1.0, RopeScaling::None),
            (json!({"rotary_emb_base": 5000, "rope_theta": 1.0}), 5000.0, 0.5, RopeScaling::None),
            (json!({"partial_rotary_factor": 0.75}), 10000.0, 0.75, RopeScaling::None),
            (
                json!({"rope_parameters": {
                    "rope_theta": 7.0, "rope_type": "default", "partial_rotary_factor": 0.25,
                }}),
                7.0,
                0.25,
                RopeScaling::None,
            ),
        ];
        for (values, theta, partial, scaling) in cases {
            let found = config(&values).rope(0.5).unwrap_or_else(|e| panic!("{values}: {e}"));
            assert_eq!(found, RopeConfig { theta, partial, scaling }, "{values}");
        }
    }

    #[test]
    fn rotary_settings_that_cannot_be_used_are_named() {
        let rope = |values: Value| error(config(&values).rope(1.0));
        assert_eq!(
            rope(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})),
            "config.json: rope_scaling.rope_type `yarn` is not supported; supported: default, linear, llama3"
        );
        assert_eq!(
            rope(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})),
            "config.json: rope_scaling.type `dynamic` is not supported; supported: default, linear, llama3"
        );
        assert_eq!(
            rope(json!({"rope_parameters": {"rope_type": "linear"}})),
            "config.json: key `rope_parameters.factor` is missing; expected a positive number"
        );
        assert_eq!(
            rope(json!({"rope_theta": -1.0})),
            "config.json: key `rope_theta` is -1.0; expected a positive number"
        );
        assert_eq!(
            rope(json!({"rope_scaling": "linear"})),
            "config.json: key `rope_scaling` is \"linear\"; expected an object"
        );
        assert_eq!(
            rope(json!({"rope_scaling": {
                "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32, "rope_type": "llama3",
            }})),
            "config.json: key `rope_scaling.high_freq_factor` is 4; expected more than low_freq_factor = 4"
        );
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
