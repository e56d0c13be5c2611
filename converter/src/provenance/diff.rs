//! How two bundles differ: in what they were made from and how, in their files, graphs and weights, and in what they
//! compute.

use super::graphs::{self, GraphDifference};
use super::numerics::{self, NumericDifference};
use super::tensors::{self, TensorDifference};
use crate::checkpoint::CheckpointError;
use crate::onnx::import::{ImportError, open};
use crate::report::progress::Progress;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// All that differs between a bundle A and a bundle B.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub same: bool,
    /// Entries of the manifests; digests are those of the files below.
    pub manifest: Vec<EntryDifference>,
    /// Files of other bytes, and those that only one has.
    pub files: Vec<FileDifference>,
    pub graphs: Vec<GraphDifference>,
    pub weights: Vec<TensorDifference>,
    pub numerics: Option<NumericDifference>,
    /// Why numerics were not compared.
    pub skipped: Option<String>,
}

/// An entry of the manifests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntryDifference {
    /// `recipe.map.features`.
    pub place: String,
    /// None where A has no such entry.
    pub a: Option<Value>,
    pub b: Option<Value>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileDifference {
    pub name: String,
    /// Bytes; none where A has no such file.
    pub a: Option<u64>,
    pub b: Option<u64>,
}

/// Two bundles cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("the manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Compares two bundles.
pub fn diff(a: &Path, b: &Path, progress: &mut dyn Progress) -> Result<Difference, DiffError> {
    let (a, b) = ((a, &Manifest::read(a)?), (b, &Manifest::read(b)?));
    progress.stage("comparing the files");
    let manifest = entries(a.1, b.1)?;
    let files = differing_files(a.0, b.0)?;
    let is_other = |name: &str| files.iter().any(|file| file.name == name);
    let mut graphs = Vec::new();
    for file in
        files.iter().filter(|file| files::is_graph(&file.name) && file.a.is_some() && file.b.is_some())
    {
        progress.stage(&format!("comparing {}", file.name));
        let [a, b] = [a.0, b.0].map(|bundle| open(&bundle.join(&file.name)));
        graphs.push(graphs::compare(&file.name, &a?.graph, &b?.graph));
        graphs.pop_if(|graph| graph.is_none());
    }
    progress.stage("comparing the weights");
    let linked = a.1.linked.iter().chain(&b.1.linked).any(|name| is_other(name));
    let weights = if is_other(files::WEIGHTS) || linked { tensors::compare(a, b)? } else { Vec::new() };
    progress.stage("comparing what they compute");
    let served = files.iter().any(|file| files::is_graph(&file.name) || file.name.ends_with(".safetensors"));
    let (numerics, skipped) = match served {
        true => numerics::compare(a, b).map_or_else(|why| (None, Some(why)), |found| (Some(found), None)),
        false => (None, Some("their graphs and weights are the same bytes".to_owned())),
    };
    progress.done();
    let same = manifest.is_empty() && files.is_empty();
    Ok(Difference { same, manifest, files, graphs, weights, numerics, skipped })
}

/// What digests stand for is compared itself.
const DERIVED: [&str; 3] = ["files", "digests", "trained"];

fn entries(a: &Manifest, b: &Manifest) -> Result<Vec<EntryDifference>, serde_json::Error> {
    let flat = |manifest: &Manifest| {
        let mut value = serde_json::to_value(manifest)?;
        if let Some(entries) = value.as_object_mut() {
            entries.retain(|name, _| !DERIVED.contains(&name.as_str()));
        }
        let mut flat = BTreeMap::new();
        flatten("", value, &mut flat);
        Ok::<_, serde_json::Error>(flat)
    };
    let (a, b) = (flat(a)?, flat(b)?);
    let places: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differs = places.into_iter().filter(|place| a.get(*place) != b.get(*place));
    let entry = |place: &String| EntryDifference {
        place: place.clone(),
        a: a.get(place).cloned(),
        b: b.get(place).cloned(),
    };
    Ok(differs.map(entry).collect())
}

/// The leaves of a value by their places. A list whose entries have names is by those.
fn flatten(place: &str, value: Value, into: &mut BTreeMap<String, Value>) {
    let below = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            entries.into_iter().for_each(|(name, value)| flatten(&below(&name), value, into));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (at, item) in items.into_iter().enumerate() {
                let name = item.get("name").and_then(Value::as_str).map_or(at.to_string(), str::to_owned);
                flatten(&format!("{place}[{name}]"), item, into);
            }
        }
        leaf => drop(into.insert(place.to_owned(), leaf)),
    }
}

/// The files at the top, except the manifest and what is made of it.
fn differing_files(a: &Path, b: &Path) -> Result<Vec<FileDifference>, DiffError> {
    let sizes = |bundle: &Path| {
        let io = |source| DiffError::Io { path: bundle.to_owned(), source };
        let mut sizes = BTreeMap::new();
        for entry in std::fs::read_dir(bundle).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let metadata = std::fs::metadata(&path).map_err(io)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if metadata.is_file() && ![files::MANIFEST, files::CHECKSUMS].contains(&name.as_str()) {
                sizes.insert(name, metadata.len());
            }
        }
        Ok::<_, DiffError>(sizes)
    };
    let (sizes_a, sizes_b) = (sizes(a)?, sizes(b)?);
    let names: BTreeSet<&String> = sizes_a.keys().chain(sizes_b.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let file = FileDifference {
            name: name.clone(),
            a: sizes_a.get(name).copied(),
            b: sizes_b.get(name).copied(),
        };
        if file.a != file.b || !is_same(&a.join(name), &b.join(name))? {
            found.push(file);
        }
    }
    Ok(found)
}

/// Whether two files of one size hold the same bytes.
fn is_same(a: &Path, b: &Path) -> Result<bool, DiffError> {
    use std::io::{BufRead as _, BufReader};
    let open = |path: &Path| {
        let io = |source| DiffError::Io { path: path.to_owned(), source };
        Ok::<_, DiffError>(BufReader::with_capacity(1 << 20, std::fs::File::open(path).map_err(io)?))
    };
    let (mut from_a, mut from_b) = (open(a)?, open(b)?);
    loop {
        let block_a = from_a.fill_buf().map_err(|source| DiffError::Io { path: a.to_owned(), source })?;
        let block_b = from_b.fill_buf().map_err(|source| DiffError::Io { path: b.to_owned(), source })?;
        let both = block_a.len().min(block_b.len());
        if block_a[..both] != block_b[..both] || (both == 0 && block_a.len() != block_b.len()) {
            return Ok(false);
        }
        if both == 0 {
            return Ok(true);
        }
        from_a.consume(both);
        from_b.consume(both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_places_that_a_person_would_name() {
        let mut flat = BTreeMap::new();
        let value = serde_json::json!({
            "recipe": {"map": {"features": 2}}, "sites": [{"name": "h.0", "heads": 4}], "eos": [1, 2], "none": {},
        });
        flatten("", value, &mut flat);
        let places: Vec<&str> = flat.keys().map(String::as_str).collect();
        assert_eq!(places, ["eos", "none", "recipe.map.features", "sites[h.0].heads", "sites[h.0].name"]);
    }

    #[test]
    fn files_are_the_same_where_every_byte_is() {
        let home = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(home.path().join(name), bytes).expect("it is written");
            home.path().join(name)
        };
        let long = vec![7; (1 << 20) + 5];
        let mut other = long.clone();
        *other.last_mut().expect("a byte") ^= 1;
        let (a, same, other) = (write("a", &long), write("same", &long), write("other", &other));
        assert!(is_same(&a, &same).expect("it is read") && !is_same(&a, &other).expect("it is read"));
        assert!(!is_same(&a, &write("short", &long[..3])).expect("it is read"));
    }
}
