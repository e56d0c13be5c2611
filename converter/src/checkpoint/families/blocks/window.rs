//! Which layers of a model see a window of tokens alone, by the keys of its config as transformers 5.17 means them.

use crate::checkpoint::config::Config;
use crate::checkpoint::error::CheckpointError;
use serde_json::Value;

/// What a family calls its window, and what the keys mean that a config leaves out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowKeys {
    /// `sliding_window` where a config has no such key. One of null is none.
    pub(crate) tokens: Option<u64>,
    /// `use_sliding_window` where a config has no such key; none in families that know no such key.
    pub(crate) switch: Option<bool>,
    /// `max_window_layers` where a config has no such key: the layer from which on layers have the window. None in families
    /// that know no such key.
    pub(crate) first: Option<u64>,
    /// Which layers have the window where neither `layer_types` nor a key tells.
    pub(crate) rest: Rest,
}

/// The layers of a model that see a window. A config may say that there are more layers than memory could hold numbers of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Windows {
    /// How many tokens such a layer sees; none where there is no such layer.
    tokens: Option<u64>,
    /// Where layers are told one by one, whether each has the window.
    types: Option<Vec<bool>>,
    /// Where they are not, which have it.
    rest: Rest,
}

/// Which layers have the window where no key tells of each.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rest {
    /// All from this one on.
    From(u64),
    /// All but the last of so many, and of so many after these.
    AllButEach(u64),
}

impl Default for Rest {
    fn default() -> Self {
        Self::From(0)
    }
}

impl Rest {
    fn has(self, layer: u64) -> bool {
        match self {
            Self::From(first) => layer >= first,
            Self::AllButEach(n) => !(layer + 1).is_multiple_of(n),
        }
    }

    /// Enough layers for both kinds to be among them.
    fn some(self, layers: u64) -> Vec<u64> {
        let next = match self {
            Self::From(first) => first,
            Self::AllButEach(n) => n - 1,
        };
        [0, next, layers.saturating_sub(1)].into_iter().filter(|layer| *layer < layers.max(1)).collect()
    }
}

impl Windows {
    /// Without windows that are no shorter than a text can be.
    pub(crate) fn shorter_than(mut self, positions: Option<u64>) -> Self {
        self.tokens = self.tokens.filter(|tokens| positions.is_none_or(|most| *tokens < most));
        self
    }

    /// How many tokens a layer sees, where it does not see all.
    pub(crate) fn of(&self, layer: u64) -> Option<u64> {
        let slides = match &self.types {
            Some(types) => types.get(layer as usize).copied().unwrap_or(false),
            None => self.rest.has(layer),
        };
        self.tokens.filter(|_| slides)
    }

    /// What so many layers see: all tokens, a window, or the one here and the other there.
    pub(crate) fn kinds(&self, layers: u64) -> Vec<Option<u64>> {
        let some = self.rest.some(layers).into_iter().map(|layer| self.of(layer));
        let told = self.types.iter().flatten().zip(0..).map(|(_, layer)| self.of(layer));
        let mut kinds: Vec<Option<u64>> = some.chain(told).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

const LAYER_TYPES: &str = "layer_types";
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl WindowKeys {
    /// Which of so many layers have a window: `layer_types` tells, and where it is not there the family's other keys.
    pub(crate) fn windows(&self, config: &Config, layers: u64) -> Result<Windows, CheckpointError> {
        let tokens = self.tokens(config)?;
        let rest = match self.first {
            Some(first) => Rest::From(config.count_or("max_window_layers", first)?),
            None => self.rest,
        };
        let types = layer_types(config, layers)?;
        if tokens.is_none() && types.iter().flatten().any(|slides| *slides) {
            let expected = format!("{FULL} in every layer, as the model has no sliding_window");
            return Err(config.bad(LAYER_TYPES, SLIDING, &expected));
        }
        Ok(Windows { tokens, types, rest })
    }

    fn tokens(&self, config: &Config) -> Result<Option<u64>, CheckpointError> {
        let stated = config.opt_size("sliding_window")?;
        let is_on = self.switch.map_or(Ok(true), |switch| config.bool_or("use_sliding_window", switch))?;
        let tokens = if config.values().contains_key("sliding_window") { stated } else { self.tokens };
        Ok(tokens.filter(|_| is_on))
    }
}

/// Of each layer, whether `layer_types` says that it has the window; none where there is no such key.
fn layer_types(config: &Config, layers: u64) -> Result<Option<Vec<bool>>, CheckpointError> {
    let Some(value) = config.value(LAYER_TYPES) else { return Ok(None) };
    let types = value.as_array().filter(|types| types.len() as u64 == layers).ok_or_else(|| {
        let found = value.as_array().map(|types| format!("a list of {}", types.len()));
        let found = found.unwrap_or_else(|| value.to_string());
        config.bad(LAYER_TYPES, &found, &format!("a list of {layers}, one for each layer"))
    })?;
    let slides = |kind: &Value| match kind.as_str() {
        Some(FULL) => Ok(false),
        Some(SLIDING) => Ok(true),
        other => {
            let found = other.map_or_else(|| kind.to_string(), str::to_owned);
            Err(config.unsupported(LAYER_TYPES, &found, &format!("{FULL}, {SLIDING}")))
        }
    };
    types.iter().map(slides).collect::<Result<Vec<bool>, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As Mistral has them.
    const ALWAYS: WindowKeys =
        WindowKeys { tokens: Some(4096), switch: None, first: None, rest: Rest::From(0) };
    /// As Qwen has them.
    const SWITCHED: WindowKeys =
        WindowKeys { tokens: Some(4096), switch: Some(false), first: Some(28), rest: Rest::From(0) };
    /// As Phi has them.
    const STATED: WindowKeys = WindowKeys { tokens: None, switch: None, first: None, rest: Rest::From(0) };

    fn windows(keys: &WindowKeys, values: &Value) -> Result<Vec<Option<u64>>, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, values.to_string()).expect("it is written");
        let config = Config::read(&path).expect("it is read");
        let place = format!("{}: ", path.display());
        let found = keys.windows(&config, 3).map_err(|e| e.to_string().replace(&place, ""))?;
        let each: Vec<Option<u64>> = (0..3).map(|layer| found.of(layer)).collect();
        let mut kinds = each.clone();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(found.kinds(3), kinds);
        Ok(each)
    }

    #[test]
    fn a_window_of_every_layer() {
        let all = |window| Ok(vec![window; 3]);
        assert_eq!(windows(&ALWAYS, &json!({})), all(Some(4096)));
        assert_eq!(windows(&ALWAYS, &json!({"sliding_window": null})), all(None));
        assert_eq!(windows(&ALWAYS, &json!({"sliding_window": 8})), all(Some(8)));
        assert_eq!(windows(&STATED, &json!({})), all(None));
        assert_eq!(windows(&STATED, &json!({"sliding_window": 8})), all(Some(8)));
        // Keys that such a family does not know.
        let unknown = json!({"use_sliding_window": false, "max_window_layers": 2, "sliding_window": 8});
        assert_eq!(windows(&ALWAYS, &unknown), all(Some(8)));
    }

    #[test]
    fn a_window_is_turned_on_and_begins_at_a_layer() {
        let of = |values: &Value| windows(&SWITCHED, values);
        assert_eq!(of(&json!({"sliding_window": 8})), Ok(vec![None; 3]));
        assert_eq!(of(&json!({"use_sliding_window": false, "max_window_layers": 0})), Ok(vec![None; 3]));
        assert_eq!(of(&json!({"use_sliding_window": true})), Ok(vec![None; 3]));
        let on = |first: u64| of(&json!({"use_sliding_window": true, "max_window_layers": first}));
        assert_eq!(on(0), Ok(vec![Some(4096); 3]));
        assert_eq!(on(1), Ok(vec![None, Some(4096), Some(4096)]));
        assert_eq!(on(2), Ok(vec![None, None, Some(4096)]));
        assert_eq!(on(3), Ok(vec![None; 3]));
    }

    /// As Gemma has them.
    #[test]
    fn all_but_the_last_of_some_layers_have_a_window() {
        let near = Some(8);
        let each = |n: u64| {
            let keys = WindowKeys { rest: Rest::AllButEach(n), ..ALWAYS };
            windows(&keys, &json!({"sliding_window": 8}))
        };
        assert_eq!(each(2), Ok(vec![near, None, near]));
        assert_eq!(each(1), Ok(vec![None; 3]));
        assert_eq!(each(3), Ok(vec![near, near, None]));
        assert_eq!(each(6), Ok(vec![near; 3]));
        let keys = WindowKeys { rest: Rest::AllButEach(2), ..ALWAYS };
        let full = json!({"sliding_window": 8, "layer_types": vec!["full_attention"; 3]});
        assert_eq!(windows(&keys, &full), Ok(vec![None; 3]));
    }

    #[test]
    fn types_of_layers_come_first() {
        let types = json!(["full_attention", "sliding_attention", "full_attention"]);
        let mixed = Ok(vec![None, Some(8), None]);
        assert_eq!(windows(&ALWAYS, &json!({"sliding_window": 8, "layer_types": types})), mixed);
        let on = json!({"use_sliding_window": true, "max_window_layers": 3, "sliding_window": 8, "layer_types": types});
        assert_eq!(windows(&SWITCHED, &on), mixed);
        let full = json!({"sliding_window": 8, "layer_types": vec!["full_attention"; 3]});
        assert_eq!(windows(&ALWAYS, &full), Ok(vec![None; 3]));
        assert_eq!(
            windows(&ALWAYS, &json!({"sliding_window": 8, "layer_types": null})),
            Ok(vec![Some(8); 3])
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |keys, values: &Value| windows(keys, values).expect_err("it is refused");
        assert_eq!(
            refused(&ALWAYS, &json!({"sliding_window": 0})),
            "key `sliding_window` is 0; expected a positive integer below 2^31"
        );
        let types = json!(["full_attention", "sliding_attention", "full_attention"]);
        assert_eq!(
            refused(&ALWAYS, &json!({"sliding_window": null, "layer_types": types})),
            "key `layer_types` is sliding_attention; expected full_attention in every layer, as the model has no sliding_window"
        );
        assert_eq!(
            refused(&SWITCHED, &json!({"layer_types": types})),
            "key `layer_types` is sliding_attention; expected full_attention in every layer, as the model has no sliding_window"
        );
        assert_eq!(
            refused(&ALWAYS, &json!({"layer_types": ["full_attention"]})),
            "key `layer_types` is a list of 1; expected a list of 3, one for each layer"
        );
        assert_eq!(
            refused(&ALWAYS, &json!({"layer_types": vec!["chunked_attention"; 3]})),
            "layer_types `chunked_attention` is not supported; supported: full_attention, sliding_attention"
        );
        assert_eq!(
            refused(&ALWAYS, &json!({"layer_types": [1, 2, 3]})),
            "layer_types `1` is not supported; supported: full_attention, sliding_attention"
        );
    }
}
