//! The recipes that ship, and recipes from files.

use dijiang_format::place::NOTHING;
use dijiang_format::recipe::Recipe;
use dijiang_passes::feature_map::recipe_check::{self, RecipeError};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The recipe of a conversion that names none.
pub const DEFAULT: &str = "adaptive";

/// Name and text of every recipe beside this file, in the order they are listed.
pub const PRESETS: &[(&str, &str)] = &[
    ("adaptive", include_str!("adaptive.yaml")),
    ("windows", include_str!("windows.yaml")),
    ("gated", include_str!("gated.yaml")),
    ("paper", include_str!("paper.yaml")),
    ("released", include_str!("released.yaml")),
    ("performer", include_str!("performer.yaml")),
    ("pff", include_str!("pff.yaml")),
    ("wpff", include_str!("wpff.yaml")),
    ("decayed", include_str!("decayed.yaml")),
    ("elu", include_str!("elu.yaml")),
    ("cosformer", include_str!("cosformer.yaml")),
    ("retnet", include_str!("retnet.yaml")),
    ("linformer", include_str!("linformer.yaml")),
    ("softmax", include_str!("softmax.yaml")),
];

/// A recipe cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RecipeFileError {
    #[error("no recipe is called `{name}`: expected one of {known}, or the path of a .yaml file")]
    Unknown { name: String, known: String },
    #[error("{}: {NOTHING} (hint: --recipe takes {known}, or the path of a .yaml file)", path.display())]
    Nothing { path: PathBuf, known: String },
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{place}: not a recipe: {reason}")]
    Yaml { place: String, reason: String },
    #[error("{place}: {source}")]
    Recipe { place: String, source: RecipeError },
}

/// A recipe by the name of a preset, or by the path of a YAML file.
pub fn load(name: &str) -> Result<Recipe, RecipeFileError> {
    if let Some((_, text)) = PRESETS.iter().find(|(n, _)| *n == name) {
        return parse(text, name);
    }
    let path = Path::new(name);
    let is_named = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    if !is_named && !path.is_file() {
        return Err(RecipeFileError::Unknown { name: name.to_owned(), known: known() });
    }
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => RecipeFileError::Nothing { path: path.to_owned(), known: known() },
        _ => RecipeFileError::Io { path: path.to_owned(), source },
    })?;
    parse(&text, name)
}

fn known() -> String {
    PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn parse(text: &str, place: &str) -> Result<Recipe, RecipeFileError> {
    let recipe: Recipe = serde_yaml::from_str(text).map_err(|e| {
        // One line, whatever the parser prints.
        let reason = e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        RecipeFileError::Yaml { place: place.to_owned(), reason }
    })?;
    let given: BTreeMap<String, serde_yaml::Value> = serde_yaml::from_str(text).unwrap_or_default();
    let checked = recipe_check::check(&recipe)
        .and_then(|()| recipe_check::check_given(&recipe, given.keys().map(String::as_str)));
    checked.map_err(|source| RecipeFileError::Recipe { place: place.to_owned(), source })?;
    Ok(recipe)
}

/// The recipe, where the compiler can do what it asks for.
pub fn checked(recipe: Recipe) -> Result<Recipe, RecipeFileError> {
    let place = recipe.name.clone();
    recipe_check::check(&recipe).map_err(|source| RecipeFileError::Recipe { place, source })?;
    Ok(recipe)
}

/// The recipe with these wide layers.
pub fn with_wide(mut recipe: Recipe, layers: Vec<usize>) -> Recipe {
    if let Some(wide) = recipe.wide.as_mut() {
        wide.layers = Some(layers);
    }
    recipe
}

/// A recipe as its file has it.
pub fn to_yaml(recipe: &Recipe) -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_in_the_table_and_parses() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/recipes");
        let files = std::fs::read_dir(dir).expect("the recipes").map(|entry| entry.expect("an entry").path());
        let files = files.filter(|file| file.extension().is_some_and(|e| e == "yaml"));
        let mut files: Vec<String> =
            files.map(|file| file.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
        files.sort();
        let mut table: Vec<&str> = PRESETS.iter().map(|(n, _)| *n).collect();
        table.sort_unstable();
        assert_eq!(files, table);
        for (name, _) in PRESETS {
            assert_eq!(load(name).expect("it parses").name, *name);
        }
    }

    #[test]
    fn mistakes_are_one_line() {
        let cases = [
            (
                load("adaptve"),
                "no recipe is called `adaptve`: expected one of adaptive, windows, gated, paper, released, performer, pff, wpff, decayed, elu, cosformer, retnet, linformer, softmax, or the path of a .yaml file",
            ),
            (
                parse("name: x\nmap: {kind: relu}", "x.yaml"),
                "x.yaml: recipe `x`: no feature map is called `relu` (there are: cosformer, dct-softmax, dct-transposed, dct-unit, elu, identity, pff, prf, wdcf, wdct-unit, wpff)",
            ),
            (
                parse("name: x\nmap: {kind: wdcf}\nrule: none\nlocal: {window: 4}", "x.yaml"),
                "x.yaml: recipe `x`: `map` means nothing beside `rule: none` (hint: take one of them out)",
            ),
            (
                parse("name: x\nmpa: {}", "x.yaml"),
                "x.yaml: not a recipe: unknown field `mpa`, expected one of `name`, `attention`, `map`, `decay`, `readout`, `by_position`, `rule`, `slots`, `local`, `feed`, `wide`, `both_ways`, `softmax_layers`, `chunk` at line 2 column 1",
            ),
        ];
        for (result, want) in cases {
            assert_eq!(result.expect_err("a mistake").to_string(), want);
        }
    }
}
