//! Where a checkpoint lies: a plain directory, a snapshot of the Hugging Face cache, or the cache
//! folder `models--org--name` itself. Snapshots hold symbolic links, which opening a file follows.

use super::error::CheckpointError;
use std::path::{Path, PathBuf};

/// The directory that holds `config.json`.
pub(super) fn resolve(dir: &Path) -> Result<PathBuf, CheckpointError> {
    if dir.join("config.json").is_file() {
        return Ok(dir.to_owned());
    }
    if !dir.join("snapshots").is_dir() {
        return Err(without_config(dir));
    }
    let snapshot = snapshot(dir)?;
    if snapshot.join("config.json").is_file() {
        return Ok(snapshot);
    }
    Err(without_config(&snapshot))
}

fn without_config(dir: &Path) -> CheckpointError {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    let gguf = files.iter().find(|file| file.extension().is_some_and(|e| e == "gguf"));
    let hint = gguf.map_or_else(String::new, |file| format!(" (hint: name the file, {})", file.display()));
    CheckpointError::NoConfig { dir: dir.to_owned(), hint }
}

/// The snapshot that `refs/main` names, or the only one there is.
fn snapshot(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let missing = |reason: String| CheckpointError::NoSnapshot { dir: dir.to_owned(), reason };
    if let Ok(revision) = std::fs::read_to_string(dir.join("refs/main")) {
        let snapshot = dir.join("snapshots").join(revision.trim());
        return if snapshot.is_dir() {
            Ok(snapshot)
        } else {
            Err(missing(format!("refs/main names `{}`, which is not there", revision.trim())))
        };
    }
    let all = folders(&dir.join("snapshots"))?;
    match all.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(missing(format!("there is no refs/main, and snapshots/ holds {} folders", all.len()))),
    }
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let fail = |source| CheckpointError::Io { path: dir.to_owned(), source };
    let entries = std::fs::read_dir(dir).map_err(fail)?;
    let paths: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_, _>>().map_err(fail)?;
    Ok(paths.into_iter().filter(|p| p.is_dir()).collect())
}
