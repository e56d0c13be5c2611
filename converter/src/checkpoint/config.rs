//! `config.json`: typed access to its keys, and the spellings that transformers 4 and 5 use.

use super::error::CheckpointError;
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

/// What a family calls its rotary settings outside `rope_parameters`. The first name that is there counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeKeys {
    pub(super) theta: &'static [&'static str],
    pub(super) partial: &'static [&'static str],
    /// The share of a head's features that is rotated where no key tells.
    pub(super) share: f64,
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
/// What a contradiction calls a setting of `rope_parameters` as `rope_scaling` has it.
const BY_SCALING: &str = "that by `rope_scaling`";
const ROPE_TYPES: &str = "default, linear, llama3";

impl Config {
    /// Reads a file that must hold one JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text =
            regular::read(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        let values = serde_json::from_slice(&text)
            .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), values, asked: Asked::default() })
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
        Section { path: &self.path, prefix: "", values: &self.values, asked: &self.asked }
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

    /// Rotary settings: `rope_parameters` (transformers 5), or `rope_scaling` and the family's own keys (4).
    ///
    /// Where both objects are there, transformers 5 reads `rope_scaling` alone, and 4 knows no other. What
    /// `rope_parameters` says beyond the default must be the same then: the file would mean two models.
    pub(super) fn rope(&self, keys: &RopeKeys) -> Result<RopeConfig, CheckpointError> {
        let top = self.top();
        let is_filled = |section: &Section<'_>| !section.values.is_empty();
        let old = top.section("rope_scaling")?.filter(is_filled);
        let new = top.section("rope_parameters")?.filter(is_filled);
        let rope = self.rope_of(keys, old.as_ref().or(new.as_ref()))?;
        let (Some(_), Some(new)) = (old, new) else { return Ok(rope) };
        let other = self.rope_of(keys, Some(&new))?;
        let same = |part: &str, one: f64, other: f64| match one.to_bits() == other.to_bits() {
            true => Ok(()),
            false => Err(self.contradiction(&new.full(part), &other, BY_SCALING, &one)),
        };
        same("rope_theta", rope.theta, other.theta)?;
        same("partial_rotary_factor", rope.partial, other.partial)?;
        if other.scaling != RopeScaling::None && other.scaling != rope.scaling {
            return Err(self.contradiction(
                &new.full("rope_type"),
                &other.scaling,
                BY_SCALING,
                &rope.scaling,
            ));
        }
        Ok(rope)
    }

    /// The settings by one of the two objects and the keys outside them.
    fn rope_of(&self, keys: &RopeKeys, section: Option<&Section<'_>>) -> Result<RopeConfig, CheckpointError> {
        let setting = |inner: &str, outer: &[&str], default: f64| {
            let (mut inside, mut outside) = (None, None);
            if let Some(section) = section {
                inside = section.positive(inner)?.map(|value| (section.full(inner), value));
            }
            for key in outer {
                let stated = self.top().positive(key)?;
                outside = outside.or(stated.map(|value| ((*key).to_owned(), value)));
            }
            match (inside, outside) {
                (Some((inner, x)), Some((outer, y))) if x.to_bits() != y.to_bits() => {
                    Err(self.contradiction(&inner, &x, &format!("`{outer}`"), &y))
                }
                (inside, outside) => Ok(inside.or(outside).map_or(default, |(_, value)| value)),
            }
        };
        let theta = setting("rope_theta", keys.theta, 10000.0)?;
        let partial = setting("partial_rotary_factor", keys.partial, keys.share)?;
        let scaling = section.map_or(Ok(RopeScaling::None), |section| self.rope_scaling(section))?;
        Ok(RopeConfig { theta, partial, scaling })
    }

    fn rope_scaling(&self, section: &Section<'_>) -> Result<RopeScaling, CheckpointError> {
        // `type` is the older spelling.
        let (key, kind) = match (section.str("rope_type")?, section.str("type")?) {
            (Some(new), Some(old)) if new != old => {
                let other = format!("`{}`", section.full("type"));
                return Err(self.contradiction(&section.full("rope_type"), &new, &other, &old));
            }
            (Some(kind), _) => ("rope_type", kind),
            (None, kind) => ("type", kind.unwrap_or("default")),
        };
        let number = |key: &str| section.need(key, section.positive(key)?, "a positive number");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => {
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if high <= low {
                    let expected = format!("more than low_freq_factor = {low}");
                    return Err(self.bad(&section.full("high_freq_factor"), &high.to_string(), &expected));
                }
                let original = number("original_max_position_embeddings")?;
                RopeScaling::Llama3 { factor: number("factor")?, low, high, original }
            }
            other => return Err(self.unsupported(&section.full(key), other, ROPE_TYPES)),
        };
        // Every key of these objects changes the frequencies of some type.
        match section.unread().first() {
            Some((key, value)) => Err(CheckpointError::UnreadKey {
                path: self.path.clone(),
                key: section.full(key),
                found: shortened(value),
                reader: format!("rope_type `{kind}`"),
            }),
            None => Ok(scaling),
        }
    }

    fn contradiction(
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

    pub(super) fn unsupported(&self, key: &str, found: &str, supported: &str) -> CheckpointError {
        CheckpointError::Unsupported {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            supported: supported.to_owned(),
        }
    }
}

impl fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "default"),
            Self::Linear { factor } => write!(f, "linear by {factor}"),
            Self::Llama3 { factor, low, high, original } => {
                write!(f, "llama3 by {factor} from {low} to {high} of {original}")
            }
        }
    }
}

/// The keys of the file, or of an object inside it.
struct Section<'a> {
    path: &'a Path,
    prefix: &'static str,
    values: &'a Map<String, Value>,
    asked: &'a Asked,
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
        Ok(values.map(|values| Section { path: self.path, prefix: key, values, asked: self.asked }))
    }

    fn unread(&self) -> Vec<(&'a str, &'a Value)> {
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
        let values = values.as_object().expect("an object").clone();
        Config { path: "config.json".into(), values, asked: Asked::default() }
    }

    const KEYS: RopeKeys = RopeKeys {
        theta: &["rotary_emb_base", "rope_theta"],
        partial: &["rotary_pct", "partial_rotary_factor"],
        share: 0.5,
    };

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
            // Both objects: transformers reads `rope_scaling`.
            (
                json!({
                    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                }),
                10000.0,
                0.5,
                linear,
            ),
            (
                json!({
                    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
                    "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0},
                    "rope_theta": 7.0,
                }),
                7.0,
                0.5,
                linear,
            ),
            (
                json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {}}),
                10000.0,
                0.5,
                linear,
            ),
        ];
        for (values, theta, partial, scaling) in cases {
            let found = config(&values).rope(&KEYS).unwrap_or_else(|e| panic!("{values}: {e}"));
            assert_eq!(found, RopeConfig { theta, partial, scaling }, "{values}");
        }
    }

    #[test]
    fn rotary_settings_that_cannot_be_used_are_named() {
        let rope = |values: Value| error(config(&values).rope(&KEYS));
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
    fn rotary_settings_that_contradict_each_other_are_refused() {
        let rope = |values: Value| error(config(&values).rope(&KEYS));
        let hint = "(hint: leave one of them in the file)";
        assert_eq!(
            rope(json!({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 8.0})),
            format!("config.json: `rope_parameters.rope_theta` is 7 and `rope_theta` is 8 {hint}")
        );
        // transformers forgets the theta with the object.
        assert_eq!(
            rope(json!({
                "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            })),
            format!(
                "config.json: `rope_parameters.rope_theta` is 500000 and that by `rope_scaling` is 10000 {hint}"
            )
        );
        assert_eq!(
            rope(json!({
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            })),
            format!(
                "config.json: `rope_parameters.rope_type` is linear by 2 and that by `rope_scaling` is linear by 4 {hint}"
            )
        );
        assert_eq!(
            rope(json!({"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 4.0}})),
            format!(
                "config.json: `rope_scaling.rope_type` is default and `rope_scaling.type` is linear {hint}"
            )
        );
    }

    #[test]
    fn rotary_keys_that_the_type_does_not_read_are_refused() {
        let rope = |values: Value| error(config(&values).rope(&KEYS));
        assert_eq!(
            rope(json!({"rope_scaling": {"factor": 4.0}})),
            "config.json: `rope_scaling.factor` is 4.0, which rope_type `default` does not read (hint: remove the key if it means nothing)"
        );
        assert_eq!(
            rope(json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "attention_factor": 0.5}})),
            "config.json: `rope_parameters.attention_factor` is 0.5, which rope_type `linear` does not read (hint: remove the key if it means nothing)"
        );
        let message = rope(json!({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}));
        assert!(message.starts_with("config.json: `rope_parameters.full_attention` is {"), "{message}");
    }

    #[test]
    fn a_familys_rotary_keys_are_its_own() {
        let keys = RopeKeys { theta: &["rope_theta"], partial: &[], share: 1.0 };
        let config = config(&json!({"rotary_emb_base": 7.0, "rotary_pct": 0.5}));
        let found = config.rope(&keys).expect("settings");
        assert_eq!((found.theta, found.partial), (10000.0, 1.0));
        assert_eq!(config.unread().len(), 2);
    }

    #[test]
    fn keys_are_unread_until_they_are_asked_for() {
        let config = config(&json!({"a": null, "b": 1, "c": 2, "rope_theta": 7.0}));
        config.opt_size("b").expect("a size");
        config.rope(&KEYS).expect("settings");
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
