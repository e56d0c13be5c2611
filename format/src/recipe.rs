//! Recipes: what to put in the place of softmax attention, and where.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A recipe, as in its YAML file. Every field has its meaning and default here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub name: String,
    /// `softmax` leaves every site as it is.
    #[serde(default)]
    pub attention: Attention,
    #[serde(default)]
    pub map: MapSpec,
    #[serde(default)]
    pub decay: Decay,
    #[serde(default)]
    pub readout: Readout,
    /// Weights of each head for so many positions, on what a token writes and on what a query reads, as the authors' code
    /// has them; past the last position those of the last hold. None where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_position: Option<u64>,
    /// How a token changes the state.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rule: Rule,
    /// The slots that `rule: slots` sums tokens in; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Slots>,
    /// Exact softmax over near tokens beside the recurrence; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    /// Which tokens the recurrence has beside the window.
    #[serde(default, skip_serializing_if = "is_default")]
    pub feed: Feed,
    /// Layers that have a longer window and nothing beside it; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wide: Option<Wide>,
    /// The features of attentions that see all tokens, where `rule: delta` and `local` mean nothing: those become sums that are
    /// divided, without a decay. They stay softmax where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub both_ways: Option<MapSpec>,
    /// Layers that stay softmax, counted from 0.
    #[serde(default)]
    pub softmax_layers: Vec<usize>,
    /// Tokens per chunk of the chunked lowering.
    #[serde(default = "default_chunk")]
    pub chunk: u32,
}

/// The most positions that have weights of their own.
pub const MOST_POSITIONS: u64 = 1 << 20;

/// The most tokens of a chunk: its scores are a square of so many.
pub const MOST_CHUNK: u32 = 1 << 16;

fn default_chunk() -> u32 {
    64
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    Softmax,
    #[default]
    Linear,
}

/// The feature map and how its parameters start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MapSpec {
    /// The name of a feature map of the compiler.
    pub kind: String,
    /// m as a multiple of head_dim.
    pub features: usize,
    /// Every frequency once with each sign (`dct-softmax`).
    pub signs: bool,
    pub lengths: Lengths,
    pub radial: Radial,
    /// Features are divided by their Euclidean length.
    #[serde(skip_serializing_if = "is_default")]
    pub unit: bool,
    /// The rows that are learned begin as this basis (`dct-unit`).
    #[serde(skip_serializing_if = "is_default")]
    pub basis: Basis,
    /// How rows that are drawn stand to each other (`prf`).
    #[serde(skip_serializing_if = "is_default")]
    pub rows: Rows,
    /// How many positions features are told apart by (`cosformer`); those of the model where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<u64>,
}

/// Of fields that recipes from before they were there lack.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The basis that learned rows begin as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// The orthonormal DCT-II.
    #[default]
    Dct,
    /// The identity matrix.
    Identity,
}

/// How rows that are drawn stand to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rows {
    /// Orthogonal, as many at a time as there are dimensions, each as long as an independent one.
    #[default]
    Orthogonal,
    Independent,
}

impl Default for MapSpec {
    fn default() -> Self {
        Self {
            kind: "wdcf".to_owned(),
            features: 1,
            signs: false,
            lengths: Lengths::Quantiles,
            radial: Radial::Normal,
            unit: false,
            basis: Basis::Dct,
            rows: Rows::Orthogonal,
            positions: None,
        }
    }
}

/// How lengths t are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lengths {
    /// Quasi-Monte Carlo: quantiles of equally spaced points, in seeded order.
    #[default]
    Quantiles,
    /// Monte Carlo.
    Sampled,
}

/// The distribution of lengths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Radial {
    /// Φ⁻¹, as the paper prints it.
    #[default]
    Normal,
    /// χ with head_dim degrees of freedom: the length of a standard normal vector.
    Chi,
}

/// a_t of the recurrence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// a_t = 1.
    #[default]
    None,
    /// A fixed γ per key/value head: 1 - 2^(-5-h) (RetNet, Sun et al. 2023).
    Fixed,
    /// A fixed γ per key/value head: 1 - e^l, l evenly spaced from ln 1/32 to ln 1/512 (the authors' released code).
    Released,
    /// sigmoid(w_h·x_t + b_h) per key/value head (Peng et al. 2021).
    Learned,
}

/// How a token changes the state S, before φ(q)ᵀ S is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// S ← a_t S + φ(k_t) ⊗ v_t. Beside a window both are parts of one normalisation:
    /// o_i = (Σ_near exp(s q_i·k_j) v_j + e^b φ(q_i)ᵀ S) / (Σ_near exp(s q_i·k_j) + e^b φ(q_i)·z), b learned per query head.
    #[default]
    Linear,
    /// S ← a_t S, then S ← S + φ(k_t) ⊗ β_t (v_t - Sᵀφ(k_t)), β_t = sigmoid(w_h·x_t + b_h) per key/value head and φ(k)
    /// a unit vector (Schlag et al. 2021; Yang et al. 2024). Nothing divides what is read.
    Delta,
    /// Softmax over r slots in the place of tokens, whose keys and values are sums of those of tokens by learned weights of
    /// their position: K ← K + e_j ⊗ k_j, V ← V + f_j ⊗ v_j, o_i = softmax(s K q_i)ᵀ V (Wang et al. 2020; summed token by token,
    /// as masking the scores of whole sums would show what comes later).
    Slots,
    /// There is no state: the window alone.
    None,
}

/// The slots of `rule: slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    pub count: u32,
    /// How many positions have weights; as many as the model has where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<u64>,
}

/// The most slots.
pub const MOST_SLOTS: u32 = 1 << 12;

/// Softmax over the last tokens and the first, as it was. By counts: n_i is how many tokens of the row that are no padding
/// stand up to i, i itself included; j is visible to i where n_i - n_j < `window` or n_j ≤ `sinks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Local {
    pub window: u32,
    #[serde(default)]
    pub sinks: u32,
}

/// Which tokens the recurrence has beside a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    /// Every token, as it comes.
    #[default]
    AtOnce,
    /// Those that have left the window: with the token of count n, φ(k) ⊗ v of the token of count n - `window` is added, where
    /// that is no sink. a_t and β_t are those of the token of count n.
    Leaving,
}

/// The most tokens of a window, and of sinks.
pub const MOST_LOCAL: u32 = 1 << 14;

impl Local {
    /// The tokens that a state holds.
    pub fn slots(&self) -> u64 {
        u64::from(self.window) + u64::from(self.sinks)
    }
}

/// The layers that look far: softmax over a longer window, with the sinks of `local`, and no other state. A text that is
/// copied is found again by few layers of a model, and a state of a given size is worth most in those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wide {
    pub window: u32,
    /// One layer of so many is wide, where `layers` does not say which.
    #[serde(default = "default_one_in")]
    pub one_in: u32,
    /// Counted from 0; a conversion measures which where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

fn default_one_in() -> u32 {
    5
}

impl Wide {
    /// How many of `layers` layers are wide.
    pub fn count(&self, layers: usize) -> usize {
        match &self.layers {
            Some(named) => named.len(),
            None => layers / self.one_in.max(1) as usize,
        }
    }
}

impl Recipe {
    /// The recipe of one layer, whose attention follows the order of the tokens or sees all of them.
    pub fn at(&self, layer: usize, is_causal: bool) -> Cow<'_, Self> {
        if let Some(map) = self.both_ways.clone().filter(|_| !is_causal) {
            let (decay, readout, rule) = (Decay::None, Readout::Sum, Rule::Linear);
            let feed = Feed::default();
            return Cow::Owned(Self {
                map,
                decay,
                readout,
                by_position: None,
                rule,
                slots: None,
                local: None,
                feed,
                wide: None,
                ..self.clone()
            });
        }
        let named = self.wide.iter().find(|wide| wide.layers.iter().flatten().any(|wide| *wide == layer));
        let Some(wide) = named else { return Cow::Borrowed(self) };
        let sinks = self.local.map_or(0, |local| local.sinks);
        Cow::Owned(Self {
            map: MapSpec::default(),
            decay: Decay::default(),
            readout: Readout::default(),
            by_position: None,
            rule: Rule::None,
            slots: None,
            local: Some(Local { window: wide.window, sinks }),
            feed: Feed::default(),
            wide: None,
            ..self.clone()
        })
    }
}

/// What is made of φ(q)ᵀ S.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readout {
    /// Divided by φ(q)·z; as it is under the delta rule, which needs no z.
    #[default]
    Sum,
    /// Normalised in groups, weighed and shifted, and gated by SiLU(W_g x), as in the authors' released code: a group is as
    /// many consecutive channels of all heads as there are heads, and straddles them.
    GroupNorm,
    /// Divided by its root mean square per head and gated by SiLU(W_g x) (RetNet, Sun et al. 2023).
    RmsNorm,
}

impl MapSpec {
    /// The fields that differ from their defaults.
    pub fn fields_set(&self) -> Vec<&'static str> {
        let default = Self::default();
        let fields = [
            ("features", self.features != default.features),
            ("signs", self.signs != default.signs),
            ("lengths", self.lengths != default.lengths),
            ("radial", self.radial != default.radial),
            ("unit", self.unit != default.unit),
            ("basis", self.basis != default.basis),
            ("rows", self.rows != default.rows),
            ("positions", self.positions != default.positions),
        ];
        fields.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"name": "far", "rule": "delta", "decay": "learned", "map": {"kind": "dct-unit"},
        "local": {"window": 32, "sinks": 4}, "wide": {"window": 256, "layers": [1, 3]}}"#;

    #[test]
    fn a_wide_layer_has_a_longer_window_and_nothing_beside_it() {
        let recipe: Recipe = serde_json::from_str(TEXT).expect("a recipe");
        for layer in [0, 2, 4] {
            assert_eq!(*recipe.at(layer, true), recipe);
        }
        for layer in [1, 3] {
            let wide = recipe.at(layer, true);
            assert_eq!(wide.local, Some(Local { window: 256, sinks: 4 }));
            assert_eq!((wide.rule, wide.decay, &wide.wide), (Rule::None, Decay::None, &None));
        }
    }

    #[test]
    fn what_sees_all_tokens_has_sums_that_are_divided() {
        let mut recipe: Recipe = serde_json::from_str(TEXT).expect("a recipe");
        assert_eq!(recipe.at(0, false).rule, Rule::Delta, "it says nothing of such attentions");
        let map = MapSpec { kind: "dct-softmax".to_owned(), ..MapSpec::default() };
        recipe.both_ways = Some(map.clone());
        let found = recipe.at(1, false);
        assert_eq!((&found.map, found.rule, found.decay), (&map, Rule::Linear, Decay::None));
        assert_eq!((found.local, &found.wide), (None, &None));
        assert_eq!(recipe.at(0, true).rule, Rule::Delta);
    }

    #[test]
    fn so_many_layers_are_wide_as_are_named_or_one_in_so_many() {
        let mut wide = Wide { window: 256, one_in: 5, layers: None };
        assert_eq!([4, 5, 9, 30].map(|layers| wide.count(layers)), [0, 1, 1, 6]);
        wide.layers = Some(vec![7]);
        assert_eq!(wide.count(30), 1);
    }
}
