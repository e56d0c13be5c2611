//! Recipes: what to put in the place of softmax attention, and where.

use crate::feature_map;
use serde::{Deserialize, Serialize};

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
    /// Layers that stay softmax, counted from 0.
    #[serde(default)]
    pub softmax_layers: Vec<usize>,
    /// Tokens per chunk of the chunked lowering.
    #[serde(default = "default_chunk")]
    pub chunk: u32,
}

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
    /// A name from [`feature_map::MAPS`].
    pub kind: String,
    /// m as a multiple of head_dim.
    pub features: usize,
    /// Every frequency once with each sign (`dct-softmax`).
    pub signs: bool,
    pub lengths: Lengths,
    pub radial: Radial,
}

impl Default for MapSpec {
    fn default() -> Self {
        Self {
            kind: "wdcf".to_owned(),
            features: 1,
            signs: false,
            lengths: Lengths::Quantiles,
            radial: Radial::Normal,
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
    /// sigmoid(w_h·x_t + b_h) per key/value head (Peng et al. 2021).
    Learned,
}

/// What is made of φ(q)ᵀ S.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readout {
    /// Divided by φ(q)·z.
    #[default]
    Sum,
    /// Normalised per head and gated by SiLU(W_g x), as in the released code.
    GroupNorm,
}

/// A recipe that asks for what there is not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecipeError {
    #[error("recipe `{recipe}`: no feature map is called `{kind}` (there are: {known})")]
    UnknownMap { recipe: String, kind: String, known: String },
    #[error("recipe `{recipe}`: `{field}` is {found}, expected 1 to {most}")]
    Range { recipe: String, field: &'static str, found: u64, most: u64 },
    #[error("recipe `{recipe}`: `map.{field}` means nothing to `{kind}` (it reads: {known})")]
    Ignored { recipe: String, field: &'static str, kind: &'static str, known: String },
}

/// The most features, as a multiple of head_dim: a state far larger than any cache it stands for.
const MOST_FEATURES: u64 = 64;
/// The most tokens of a chunk: its scores are a square of so many.
pub const MOST_CHUNK: u64 = 1 << 16;

impl Recipe {
    pub fn check(&self) -> Result<(), RecipeError> {
        let Some(map) = feature_map::find(&self.map.kind) else {
            let known: Vec<&str> = feature_map::MAPS.iter().map(|m| m.name()).collect();
            return Err(RecipeError::UnknownMap {
                recipe: self.name.clone(),
                kind: self.map.kind.clone(),
                known: known.join(", "),
            });
        };
        self.check_range("map.features", self.map.features as u64, MOST_FEATURES)?;
        self.check_range("chunk", u64::from(self.chunk), MOST_CHUNK)?;
        match self.map.set().into_iter().find(|field| !map.fields().contains(field)) {
            None => Ok(()),
            Some(field) => Err(RecipeError::Ignored {
                recipe: self.name.clone(),
                field,
                kind: map.name(),
                known: map.fields().join(", "),
            }),
        }
    }

    fn check_range(&self, field: &'static str, found: u64, most: u64) -> Result<(), RecipeError> {
        if (1..=most).contains(&found) {
            return Ok(());
        }
        Err(RecipeError::Range { recipe: self.name.clone(), field, found, most })
    }
}

impl MapSpec {
    /// The fields that differ from their defaults.
    fn set(&self) -> Vec<&'static str> {
        let default = Self::default();
        let fields = [
            ("features", self.features != default.features),
            ("signs", self.signs != default.signs),
            ("lengths", self.lengths != default.lengths),
            ("radial", self.radial != default.radial),
        ];
        fields.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(map: MapSpec) -> Recipe {
        Recipe {
            name: "x".to_owned(),
            attention: Attention::Linear,
            map,
            decay: Decay::None,
            readout: Readout::Sum,
            softmax_layers: Vec::new(),
            chunk: 64,
        }
    }

    fn refused(recipe: &Recipe) -> String {
        recipe.check().expect_err("it is refused").to_string()
    }

    #[test]
    fn sizes_are_bounded() {
        let features = |features| recipe(MapSpec { features, ..MapSpec::default() });
        let chunk = |chunk| Recipe { chunk, ..recipe(MapSpec::default()) };
        assert_eq!(features(64).check(), Ok(()));
        assert_eq!(chunk(65536).check(), Ok(()));
        assert_eq!(refused(&features(0)), "recipe `x`: `map.features` is 0, expected 1 to 64");
        assert_eq!(refused(&features(65)), "recipe `x`: `map.features` is 65, expected 1 to 64");
        assert_eq!(refused(&chunk(0)), "recipe `x`: `chunk` is 0, expected 1 to 65536");
        assert_eq!(refused(&chunk(65537)), "recipe `x`: `chunk` is 65537, expected 1 to 65536");
    }

    /// Every map with every field set in turn: it reads the field, or refuses it.
    #[test]
    fn a_map_refuses_the_fields_it_does_not_read() {
        let plain = MapSpec::default();
        let specs = [
            ("features", MapSpec { features: 2, ..plain.clone() }),
            ("signs", MapSpec { signs: true, ..plain.clone() }),
            ("lengths", MapSpec { lengths: Lengths::Sampled, ..plain.clone() }),
            ("radial", MapSpec { radial: Radial::Chi, ..plain.clone() }),
        ];
        let ignored = |kind: &str| -> Vec<&str> {
            let check = |spec: &MapSpec| recipe(MapSpec { kind: kind.to_owned(), ..spec.clone() }).check();
            specs.iter().filter(|(_, spec)| check(spec).is_err()).map(|(field, _)| *field).collect()
        };
        assert_eq!(ignored("prf"), ["signs", "lengths", "radial"]);
        assert_eq!(ignored("dct-softmax"), [""; 0]);
        for kind in ["pff", "wpff", "wdcf"] {
            assert_eq!(ignored(kind), ["signs"], "{kind}");
        }
        let prf = MapSpec { kind: "prf".to_owned(), radial: Radial::Chi, ..plain };
        assert_eq!(
            refused(&recipe(prf)),
            "recipe `x`: `map.radial` means nothing to `prf` (it reads: features)"
        );
    }
}
