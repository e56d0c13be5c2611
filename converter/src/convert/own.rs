//! The conversion of a checkpoint that brings an attention of its own along: to that one, and to no other.

use super::{ConvertError, ConvertOptions};
use crate::checkpoint::own_attention::{OwnAttention, RECIPE};
use crate::recipes;
use dijiang_format::recipe::Recipe;
use std::path::Path;

/// The options of the call, with the recipe of the source's own attention where it has one.
pub(super) fn settled(
    source: &Path,
    options: &ConvertOptions,
    own: Option<&OwnAttention>,
) -> Result<ConvertOptions, ConvertError> {
    let Some(own) = own else { return Ok(options.clone()) };
    let released = own.recipe(recipes::load(RECIPE)?);
    let asked = match options {
        ConvertOptions { keep: Some(_), .. } => Some("--keep".to_owned()),
        ConvertOptions { layers: Some(_), .. } => Some("--layers".to_owned()),
        ConvertOptions { is_default_recipe: false, recipe, .. } if !is_of(recipe, &released) => {
            Some(format!("--recipe {}", recipe.name))
        }
        _ => None,
    };
    if let Some(asked) = asked {
        return Err(ConvertError::OwnAttention { path: source.to_owned(), asked });
    }
    let recipe = match options.is_default_recipe {
        true => released,
        false => own.recipe(options.recipe.clone()),
    };
    Ok(ConvertOptions { recipe, ..options.clone() })
}

/// Whether a recipe is another, but for its name, its chunks and how many positions it has weights for.
fn is_of(recipe: &Recipe, released: &Recipe) -> bool {
    let by_position = recipe.by_position.or(released.by_position);
    let alike = Recipe { name: recipe.name.clone(), chunk: recipe.chunk, ..released.clone() };
    Recipe { by_position, ..recipe.clone() } == alike
}
