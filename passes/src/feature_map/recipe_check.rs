//! What a recipe may ask of the feature maps there are.

use super::{MAPS, find};
use dijiang_format::recipe::{MOST_CHUNK, Recipe};

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

/// Whether the compiler can do what a recipe asks for.
pub fn check(recipe: &Recipe) -> Result<(), RecipeError> {
    let Some(map) = find(&recipe.map.kind) else {
        let known: Vec<&str> = MAPS.iter().map(|m| m.name()).collect();
        return Err(RecipeError::UnknownMap {
            recipe: recipe.name.clone(),
            kind: recipe.map.kind.clone(),
            known: known.join(", "),
        });
    };
    check_range(recipe, "map.features", recipe.map.features as u64, MOST_FEATURES)?;
    check_range(recipe, "chunk", u64::from(recipe.chunk), u64::from(MOST_CHUNK))?;
    match recipe.map.fields_set().into_iter().find(|field| !map.fields().contains(field)) {
        None => Ok(()),
        Some(field) => Err(RecipeError::Ignored {
            recipe: recipe.name.clone(),
            field,
            kind: map.name(),
            known: map.fields().join(", "),
        }),
    }
}

fn check_range(recipe: &Recipe, field: &'static str, found: u64, most: u64) -> Result<(), RecipeError> {
    if (1..=most).contains(&found) {
        return Ok(());
    }
    Err(RecipeError::Range { recipe: recipe.name.clone(), field, found, most })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::recipe::{Attention, Decay, Lengths, MapSpec, Radial, Readout};

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
        check(recipe).expect_err("it is refused").to_string()
    }

    #[test]
    fn sizes_are_bounded() {
        let features = |features| recipe(MapSpec { features, ..MapSpec::default() });
        let chunk = |chunk| Recipe { chunk, ..recipe(MapSpec::default()) };
        assert_eq!(check(&features(64)), Ok(()));
        assert_eq!(check(&chunk(65536)), Ok(()));
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
            let is_refused =
                |spec: &MapSpec| check(&recipe(MapSpec { kind: kind.to_owned(), ..spec.clone() })).is_err();
            specs.iter().filter(|(_, spec)| is_refused(spec)).map(|(field, _)| *field).collect()
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
