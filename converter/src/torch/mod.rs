//! A bundle as a PyTorch model, and the weights trained there back in the bundle: for training that the graphs cannot
//! do, such as over several GPUs.

pub mod export;
pub mod import;

use crate::checkpoint::Config;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError, SourceFile};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The key of `config.json` that says what was converted, and how.
const KEY: &str = "dijiang";

/// Whether a config is that of the PyTorch model.
pub(crate) fn is_exported(config: &Config) -> bool {
    config.values().contains_key(KEY)
}

/// The value of [`KEY`]: what the PyTorch model must know besides the model's own config, and the digest that tells
/// whether weights belong to the bundle.
fn description(bundle: &Path, manifest: &Manifest) -> Result<Value, ManifestError> {
    let linear: Vec<usize> = manifest.sites.iter().filter(|s| s.is_linear()).map(|s| s.layer).collect();
    let windows = manifest.sites.iter().filter_map(|site| Some((site.layer.to_string(), site.window?)));
    let windows: BTreeMap<String, u32> = windows.collect();
    let weights = SourceFile::describe(&bundle.join(files::WEIGHTS))?;
    Ok(json!({
        "family": manifest.model.family,
        "recipe": manifest.recipe,
        "linear_layers": linear,
        "windows": windows,
        "weights_header_sha256": weights.safetensors_header_sha256,
    }))
}

#[cfg(test)]
mod tests {
    use dijiang_passes::feature_map::{MAPS, Owner, ParameterSpec};

    const CODE: &str = include_str!("modeling_dijiang.py");

    /// The text between two others.
    fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
        let (_, rest) = text.split_once(begin)?;
        Some(rest.split_once(end).map_or(rest, |(inner, _)| inner))
    }

    /// The keys of what a method of a class returns, or of the class it is derived from.
    fn keys<'a>(class: &str, method: &str) -> Vec<&'a str> {
        let head = format!("\nclass {class}");
        let body = between(CODE, &head, "\nclass ").expect("a class");
        let own = between(body, &format!("def {method}(m, d):"), "\n\n");
        match own {
            Some(own) => own.split('"').skip(1).step_by(2).collect(),
            None => {
                let base = between(body, "(", "):").expect("a class that it is derived from");
                keys(base, method)
            }
        }
    }

    /// A map is a class in Python too, with the same parameters; what all heads share is not trained there.
    #[test]
    fn the_maps_of_the_python_model_are_those_of_the_compiler() {
        let table = between(CODE, "\nMAPS = {", "}").expect("a table");
        let rows: Vec<(&str, &str)> = table
            .split(',')
            .map(str::trim)
            .filter(|row| !row.is_empty())
            .map(|row| row.split_once(": ").expect("a row"))
            .map(|(name, class)| (name.trim_matches('"'), class))
            .collect();
        let names: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, MAPS.iter().map(|map| map.name()).collect::<Vec<_>>());
        for (map, (name, class)) in MAPS.iter().zip(rows) {
            let of = |owner| {
                let own = map.parameters().iter().filter(move |spec| spec.owner == owner);
                own.inspect(|spec: &&ParameterSpec| assert_eq!(spec.trained, owner == Owner::Head))
                    .map(|spec| spec.name)
                    .collect::<Vec<_>>()
            };
            assert_eq!(keys(class, "per_head"), of(Owner::Head), "{name}");
            assert_eq!(keys(class, "shared"), of(Owner::Everyone), "{name}");
        }
    }
}
