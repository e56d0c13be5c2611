//! The rotary settings of a `config.json`, in the spellings of transformers 4 and 5, as its `modeling_rope_utils.py`
//! means them.

use super::config::{Config, Section, shortened};
use super::error::CheckpointError;
use std::fmt;

/// What a family calls its rotary settings outside `rope_parameters`. The first name that is there counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeKeys {
    pub(super) theta: &'static [&'static str],
    /// None where heads are rotated as a whole: transformers reads no share then.
    pub(super) partial: &'static [&'static str],
    /// The base where no key tells.
    pub(super) base: f64,
    /// The share of a head's features that is rotated where no key tells.
    pub(super) share: f64,
    /// The object inside `rope_parameters` that holds the settings, where layers of each type have their own.
    pub(super) layer_type: Option<&'static str>,
    /// Whether `rope_scaling` is of these layers.
    pub(super) scaled: bool,
    /// Whether `original_max_position_embeddings` may stand beside the object too.
    pub(super) original_beside: bool,
}

impl RopeKeys {
    /// What families call their share that rotate a part of a head.
    pub(super) const PARTIAL: &[&str] = &[SHARE];

    /// As most families have them, which rotate whole heads.
    pub(super) const USUAL: Self = Self {
        theta: &["rope_theta"],
        partial: &[],
        base: 10000.0,
        share: 1.0,
        layer_type: None,
        scaled: true,
        original_beside: false,
    };
}

/// Rotary position embedding as a config describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RopeConfig {
    pub(super) theta: f64,
    /// The share of a head's features that is rotated.
    pub(super) partial: f64,
    pub(super) scaling: RopeScaling,
}

/// How rotary frequencies are changed for contexts longer than those trained on.
#[derive(Debug, Clone, PartialEq)]
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
    Yarn(Yarn),
    LongRope(LongRope),
}

/// YaRN (Peng et al. 2023): between the pairs that turn `fast` and `slow` times within the original context, frequencies
/// go from kept to divided by `factor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Yarn {
    pub(super) factor: f64,
    pub(super) original: f64,
    pub(super) fast: f64,
    pub(super) slow: f64,
    /// Whether the bounds are whole pairs.
    pub(super) truncate: bool,
    /// What cosines and sines are multiplied with.
    pub(super) attention: f64,
}

/// LongRoPE (Ding et al. 2024): each frequency is divided by a factor of its own. There is a list for texts within the
/// original context and one for longer ones; a text's state is built from its first token on, when its length is not
/// known, so that one of them holds for all: the long one where the model has more positions than the original.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LongRope {
    pub(super) factors: Vec<f64>,
    pub(super) is_long: bool,
    pub(super) original: f64,
    /// What cosines and sines are multiplied with.
    pub(super) attention: f64,
}

/// What a contradiction calls a setting of `rope_parameters` as `rope_scaling` has it.
const BY_SCALING: &str = "that by `rope_scaling`";
const SHARE: &str = "partial_rotary_factor";
const WHOLE: &str = "1 (this family rotates whole heads)";
const ROPE_TYPES: &str = "default, linear, llama3, yarn, longrope";
const ORIGINAL: &str = "original_max_position_embeddings";
const MOST_POSITIONS: &str = "max_position_embeddings";
const NUMBER: &str = "a positive number";
const DYNAMIC: &str = "its frequencies follow the length of the text, which is not known at the first token, and a constant state keeps what was rotated then (hint: set rope_type to yarn or linear in config.json, or to default for texts within max_position_embeddings)";

impl Config {
    /// Rotary settings: `rope_parameters` (transformers 5), or `rope_scaling` and the family's own keys (4).
    ///
    /// Where both objects are there, transformers 5 reads `rope_scaling` alone, and 4 knows no other. What
    /// `rope_parameters` says beyond the default must be the same then: the file would mean two models.
    pub(super) fn rope(&self, keys: &RopeKeys) -> Result<RopeConfig, CheckpointError> {
        let top = self.top();
        let is_filled = |section: &Section<'_>| !section.values.is_empty();
        let old = if keys.scaled { top.section("rope_scaling")?.filter(is_filled) } else { None };
        let new = self.rope_parameters(keys)?.filter(is_filled);
        let rope = self.rope_of(keys, old.as_ref().or(new.as_ref()))?;
        let (Some(_), Some(new)) = (old, new) else { return Ok(rope) };
        let other = self.rope_of(keys, Some(&new))?;
        let same = |part: &str, one: f64, other: f64| match one.to_bits() == other.to_bits() {
            true => Ok(()),
            false => Err(self.contradiction(&new.full(part), &other, BY_SCALING, &one)),
        };
        same("rope_theta", rope.theta, other.theta)?;
        same(SHARE, rope.partial, other.partial)?;
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

    fn rope_parameters(&self, keys: &RopeKeys) -> Result<Option<Section<'_>>, CheckpointError> {
        let all = self.top().section("rope_parameters")?;
        let (Some(all), Some(layer_type)) = (&all, keys.layer_type) else { return Ok(all) };
        all.section(layer_type)
    }

    /// Refuses keys of `rope_parameters` beside the settings of the layers of each type.
    pub(super) fn check_rope_types(&self, family: &str) -> Result<(), CheckpointError> {
        let all = self.top().section("rope_parameters")?;
        all.map_or(Ok(()), |all| self.check_read(&all, family))
    }

    /// The settings by one of the two objects and the keys outside them.
    fn rope_of(&self, keys: &RopeKeys, section: Option<&Section<'_>>) -> Result<RopeConfig, CheckpointError> {
        let is_share = |key: &str| key == SHARE;
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
                // transformers itself writes the family's share beside an object that says otherwise.
                (Some((_, x)), Some((_, y))) if y.to_bits() == keys.share.to_bits() && is_share(inner) => {
                    Ok(x)
                }
                (Some((inner, x)), Some((outer, y))) if x.to_bits() != y.to_bits() => {
                    Err(self.contradiction(&inner, &x, &format!("`{outer}`"), &y))
                }
                (inside, outside) => Ok(inside.or(outside).map_or(default, |(_, value)| value)),
            }
        };
        let theta = setting("rope_theta", keys.theta, keys.base)?;
        let partial = setting(SHARE, keys.partial, keys.share)?;
        if let Some(section) = section.filter(|_| keys.partial.is_empty() && partial != keys.share) {
            return Err(self.unsupported(&section.full(SHARE), &partial.to_string(), WHOLE));
        }
        let scaling = section.map_or(Ok(RopeScaling::None), |section| self.rope_scaling(keys, section))?;
        Ok(RopeConfig { theta, partial, scaling })
    }

    fn rope_scaling(&self, keys: &RopeKeys, section: &Section<'_>) -> Result<RopeScaling, CheckpointError> {
        // `type` is the older spelling.
        let (key, kind) = match (section.str("rope_type")?, section.str("type")?) {
            (Some(new), Some(old)) if new != old => {
                let other = format!("`{}`", section.full("type"));
                return Err(self.contradiction(&section.full("rope_type"), &new, &other, &old));
            }
            (Some(kind), _) => ("rope_type", kind),
            (None, kind) => ("type", kind.unwrap_or("default")),
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: needed(section, "factor")? },
            "llama3" => self.llama3(keys, section)?,
            "yarn" => self.yarn(keys, section)?,
            // As the first files of Phi-3 call it.
            "longrope" | "su" => self.longrope(keys, section)?,
            "dynamic" => return Err(self.refused(&section.full(key), kind, DYNAMIC)),
            other => return Err(self.unsupported(&section.full(key), other, ROPE_TYPES)),
        };
        self.check_read(section, &format!("rope_type `{kind}`"))?;
        Ok(scaling)
    }

    /// Every key of these objects changes the frequencies of some type.
    fn check_read(&self, section: &Section<'_>, reader: &str) -> Result<(), CheckpointError> {
        match section.unread().first() {
            Some((key, value)) => Err(CheckpointError::UnreadKey {
                path: self.path().to_owned(),
                key: section.full(key),
                found: shortened(value),
                reader: reader.to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn llama3(&self, keys: &RopeKeys, section: &Section<'_>) -> Result<RopeScaling, CheckpointError> {
        let (low, high) = (needed(section, "low_freq_factor")?, needed(section, "high_freq_factor")?);
        if high <= low {
            let expected = format!("more than low_freq_factor = {low}");
            return Err(self.bad(&section.full("high_freq_factor"), &high.to_string(), &expected));
        }
        let original = self.original(keys, section)?;
        Ok(RopeScaling::Llama3 { factor: needed(section, "factor")?, low, high, original })
    }

    fn yarn(&self, keys: &RopeKeys, section: &Section<'_>) -> Result<RopeScaling, CheckpointError> {
        let factor = needed(section, "factor")?;
        let [mscale, all] = ["mscale", "mscale_all_dim"].map(|key| section.f64(key));
        let of_factor = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let told = |scale: Option<f64>| scale.filter(|x| *x != 0.0);
        let usual = match (told(mscale?), told(all?)) {
            (Some(mscale), Some(all)) => of_factor(mscale) / of_factor(all),
            _ => of_factor(1.0),
        };
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            original: self.original(keys, section)?,
            fast: section.positive("beta_fast")?.unwrap_or(32.0),
            slow: section.positive("beta_slow")?.unwrap_or(1.0),
            truncate: section.bool_or("truncate", true)?,
            attention: section.positive("attention_factor")?.unwrap_or(usual),
        }))
    }

    fn longrope(&self, keys: &RopeKeys, section: &Section<'_>) -> Result<RopeScaling, CheckpointError> {
        let original = self.original(keys, section)?;
        let most = self.top().positive(MOST_POSITIONS)?.unwrap_or(original);
        let list = |key: &str| section.need(key, section.positives(key)?, "a list of positive numbers");
        let (short, long) = (list("short_factor")?, list("long_factor")?);
        let factor = section.positive("factor")?.unwrap_or(most / original);
        let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let is_long = most > original;
        Ok(RopeScaling::LongRope(LongRope {
            factors: if is_long { long } else { short },
            is_long,
            original,
            attention: section.positive("attention_factor")?.unwrap_or(usual),
        }))
    }

    /// How many positions the model had at first: where nothing tells, as many as it has.
    fn original(&self, keys: &RopeKeys, section: &Section<'_>) -> Result<f64, CheckpointError> {
        let inside = section.positive(ORIGINAL)?;
        let beside = if keys.original_beside { self.top().positive(ORIGINAL)? } else { None };
        match (inside, beside) {
            (Some(x), Some(y)) if x.to_bits() != y.to_bits() => {
                Err(self.contradiction(&section.full(ORIGINAL), &x, &format!("`{ORIGINAL}`"), &y))
            }
            (Some(x), _) | (None, Some(x)) => Ok(x),
            (None, None) => section.need(ORIGINAL, self.top().positive(MOST_POSITIONS)?, "a positive number"),
        }
    }
}

fn needed(section: &Section<'_>, key: &str) -> Result<f64, CheckpointError> {
    section.need(key, section.positive(key)?, NUMBER)
}

impl RopeScaling {
    /// What cosines and sines are multiplied with.
    pub(super) fn attention(&self) -> f64 {
        match self {
            Self::Yarn(yarn) => yarn.attention,
            Self::LongRope(long) => long.attention,
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } => 1.0,
        }
    }

    /// What is to be told of it.
    pub(super) fn note(&self) -> Option<String> {
        let Self::LongRope(LongRope { is_long: true, original, .. }) = self else { return None };
        Some(format!(
            "rope_type longrope: the long factors hold for every text, as a state is built before the length of its text is known; transformers takes the short ones up to {original} tokens (hint: for texts of no more tokens put the list of short_factor in place of long_factor in config.json)"
        ))
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
            Self::Yarn(Yarn { factor, original, fast, slow, attention, .. }) => {
                write!(f, "yarn by {factor} from {fast} to {slow} of {original}, times {attention}")
            }
            Self::LongRope(LongRope { factors, original, .. }) => {
                write!(f, "longrope of {} factors and {original} positions", factors.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(values: &Value) -> Config {
        Config::of_values(values)
    }

    fn error<T: fmt::Debug>(result: Result<T, CheckpointError>) -> String {
        result.expect_err("an error").to_string()
    }

    const KEYS: RopeKeys = RopeKeys {
        theta: &["rotary_emb_base", "rope_theta"],
        partial: &["rotary_pct", "partial_rotary_factor"],
        share: 0.5,
        ..RopeKeys::USUAL
    };

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
            (json!({"rope_theta": 1000, "rope_scaling": llama3}), 1000.0, 0.5, scaling.clone()),
            (json!({"rope_parameters": with_theta}), 1000.0, 0.5, scaling),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), 10000.0, 0.5, linear.clone()),
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
                linear.clone(),
            ),
            (
                json!({
                    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
                    "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0},
                    "rope_theta": 7.0,
                }),
                7.0,
                0.5,
                linear.clone(),
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

    fn scaling(values: &Value) -> RopeScaling {
        config(values).rope(&KEYS).unwrap_or_else(|e| panic!("{values}: {e}")).scaling
    }

    /// As `_compute_yarn_parameters` of transformers 5.17 reads them.
    #[test]
    fn every_key_of_yarn_is_read() {
        let usual = Yarn {
            factor: 4.0,
            original: 64.0,
            fast: 32.0,
            slow: 1.0,
            truncate: true,
            attention: 0.1 * 4.0_f64.ln() + 1.0,
        };
        let of = |key: &str, value: Value| {
            let mut object = json!({"rope_type": "yarn", "factor": 4.0});
            object[key] = value;
            scaling(&json!({"max_position_embeddings": 64, "rope_scaling": object}))
        };
        let cases = [
            ("factor", json!(4.0), usual),
            ("factor", json!(1.0), Yarn { factor: 1.0, attention: 1.0, ..usual }),
            ("original_max_position_embeddings", json!(16), Yarn { original: 16.0, ..usual }),
            ("beta_fast", json!(8), Yarn { fast: 8.0, ..usual }),
            ("beta_slow", json!(0.5), Yarn { slow: 0.5, ..usual }),
            ("truncate", json!(false), Yarn { truncate: false, ..usual }),
            ("attention_factor", json!(0.5), Yarn { attention: 0.5, ..usual }),
            // One of the two is none.
            ("mscale", json!(0.7), usual),
            ("mscale_all_dim", json!(0.7), usual),
        ];
        for (key, value, expected) in cases {
            assert_eq!(of(key, value), RopeScaling::Yarn(expected), "{key}");
        }
        let both = json!({"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5});
        let attention = (0.2 * 4.0_f64.ln() + 1.0) / (0.05 * 4.0_f64.ln() + 1.0);
        assert_eq!(
            scaling(&json!({"max_position_embeddings": 64, "rope_parameters": both})),
            RopeScaling::Yarn(Yarn { attention, ..usual })
        );
    }

    /// As `_compute_longrope_parameters` does; the lists by how many positions there are.
    #[test]
    fn longrope_takes_the_list_for_all_positions() {
        let object = json!({"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]});
        let of = |most: u64, keys: &RopeKeys, object: &Value| {
            let values = json!({
                "max_position_embeddings": most, "original_max_position_embeddings": 16, "rope_scaling": object,
            });
            config(&values).rope(keys).map(|rope| rope.scaling)
        };
        let beside = RopeKeys { original_beside: true, ..RopeKeys::USUAL };
        let long = LongRope {
            factors: vec![3.0, 4.0],
            is_long: true,
            original: 16.0,
            attention: (1.0 + 4.0_f64.ln() / 16.0_f64.ln()).sqrt(),
        };
        let found = of(64, &beside, &object).expect("settings");
        assert_eq!(found, RopeScaling::LongRope(long.clone()));
        assert!(found.note().is_some_and(|note| note.contains("up to 16 tokens")), "{found}");
        let short = of(16, &beside, &object).expect("settings");
        let is_short = LongRope { factors: vec![1.0, 2.0], is_long: false, original: 16.0, attention: 1.0 };
        assert_eq!((short.note(), &short), (None, &RopeScaling::LongRope(is_short)));
        let mut named = object.clone();
        (named["type"], named["attention_factor"]) = (json!("su"), json!(1.25));
        assert_eq!(
            of(64, &beside, &named).expect("settings"),
            RopeScaling::LongRope(LongRope { attention: 1.25, ..long })
        );
        // Other families know no key beside the object.
        let other = of(64, &RopeKeys::USUAL, &object).expect("settings");
        assert!(matches!(other, RopeScaling::LongRope(LongRope { is_long: false, original: 64.0, .. })));
        named["original_max_position_embeddings"] = json!(8);
        assert_eq!(
            error(of(64, &beside, &named)),
            "config.json: `rope_scaling.original_max_position_embeddings` is 8 and `original_max_position_embeddings` is 16 (hint: leave one of them in the file)"
        );
    }

    /// As Gemma 3 has them.
    #[test]
    fn layers_of_each_type_may_have_settings_of_their_own() {
        let far = RopeKeys { base: 1e6, layer_type: Some("full_attention"), ..RopeKeys::USUAL };
        let near = RopeKeys {
            theta: &["rope_local_base_freq"],
            layer_type: Some("sliding_attention"),
            scaled: false,
            ..RopeKeys::USUAL
        };
        let both = |values: &Value| {
            let config = config(values);
            let found = [&far, &near].map(|keys| config.rope(keys));
            config.check_rope_types("gemma3")?;
            let [far, near] = found;
            Ok::<_, CheckpointError>([far?, near?].map(|rope| (rope.theta, rope.scaling)))
        };
        let linear = RopeScaling::Linear { factor: 8.0 };
        let nested = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
        }});
        let flat = json!({
            "rope_theta": 7.0, "rope_local_base_freq": 3.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        });
        for values in [nested, flat] {
            let expected = [(7.0, linear.clone()), (3.0, RopeScaling::None)];
            assert_eq!(both(&values).expect("settings"), expected, "{values}");
        }
        let usual = [(1e6, RopeScaling::None), (10000.0, RopeScaling::None)];
        assert_eq!(both(&json!({})).expect("settings"), usual);
        assert_eq!(
            error(both(&json!({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}))),
            "config.json: `rope_parameters.rope_type` is \"linear\", which gemma3 does not read (hint: remove the key if it means nothing)"
        );
    }

    #[test]
    fn rotary_settings_that_cannot_be_used_are_named() {
        let rope = |values: Value| error(config(&values).rope(&KEYS));
        assert_eq!(
            rope(json!({"rope_scaling": {"rope_type": "proportional", "factor": 4.0}})),
            "config.json: rope_scaling.rope_type `proportional` is not supported; supported: default, linear, llama3, yarn, longrope"
        );
        assert_eq!(
            rope(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})),
            "config.json: rope_scaling.type is `dynamic`: its frequencies follow the length of the text, which is not known at the first token, and a constant state keeps what was rotated then (hint: set rope_type to yarn or linear in config.json, or to default for texts within max_position_embeddings)"
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
        // The family's own share beside it is what transformers writes of all its models, and another is not.
        let share = |beside: f64| {
            let values =
                json!({"rope_parameters": {"partial_rotary_factor": 0.25}, "partial_rotary_factor": beside});
            config(&values).rope(&KEYS).map(|rope| rope.partial)
        };
        assert_eq!(share(0.5).expect("a share"), 0.25);
        assert_eq!(
            error(share(0.75)),
            format!(
                "config.json: `rope_parameters.partial_rotary_factor` is 0.25 and `partial_rotary_factor` is 0.75 {hint}"
            )
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
        let keys = RopeKeys { partial: &[], ..RopeKeys::USUAL };
        let config = config(&json!({"rotary_emb_base": 7.0, "rotary_pct": 0.5}));
        let found = config.rope(&keys).expect("settings");
        assert_eq!((found.theta, found.partial), (10000.0, 1.0));
        assert_eq!(config.unread().len(), 2);
    }
}
