//! What the options of a call come to for one source: the attention that a checkpoint brings along, and how many positions
//! features are told apart by.

use super::{ConvertError, ConvertOptions};
use crate::checkpoint::ModelMeta;
use crate::checkpoint::own_attention::{OwnAttention, RECIPE};
use crate::recipes;
use dijiang_format::recipe::Recipe;
use dijiang_passes::feature_map::{self, FeatureMap};
use std::path::Path;

/// The options of the call for this source.
pub(super) fn settled(
    source: &Path,
    options: &ConvertOptions,
    (meta, own): (&ModelMeta, Option<&OwnAttention>),
) -> Result<ConvertOptions, ConvertError> {
    let mut recipe = match own {
        Some(own) => recipe_of(source, options, own)?,
        None => options.recipe.clone(),
    };
    for spec in std::iter::once(&mut recipe.map).chain(&mut recipe.both_ways) {
        if feature_map::find(&spec.kind).is_some_and(FeatureMap::is_turned) {
            spec.positions = spec.positions.or(meta.max_positions);
        }
    }
    if let Some(slots) = &mut recipe.slots {
        slots.positions = slots.positions.or(meta.max_positions);
    }
    Ok(ConvertOptions { recipe, ..options.clone() })
}

/// The recipe of the source's own attention, where the call asks for no other.
fn recipe_of(source: &Path, options: &ConvertOptions, own: &OwnAttention) -> Result<Recipe, ConvertError> {
    let released = own.recipe(recipes::load(RECIPE)?);
    let asked = match options {
        ConvertOptions { keep: Some(_), .. } => Some("--keep".to_owned()),
        ConvertOptions { layers: Some(_), .. } => Some("--layers".to_owned()),
        ConvertOptions { is_default_recipe: false, recipe, .. } if !is_of(recipe, &released) => {
            Some(format!("--recipe {}", recipe.name))
        }
        _ => None,
    };
    match asked {
        Some(asked) => Err(ConvertError::OwnAttention { path: source.to_owned(), asked }),
        None if options.is_default_recipe => Ok(released),
        None => Ok(own.recipe(options.recipe.clone())),
    }
}

/// Whether a recipe is another but for its name, its chunks and how many positions it has weights for.
fn is_of(recipe: &Recipe, released: &Recipe) -> bool {
    let by_position = recipe.by_position.or(released.by_position);
    let alike = Recipe { name: recipe.name.clone(), chunk: recipe.chunk, ..released.clone() };
    Recipe { by_position, ..recipe.clone() } == alike
}
