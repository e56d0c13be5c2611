//! How a model of the hub is named.

use std::fmt;
use std::path::{Component, Path, PathBuf};

const MAIN: &str = "main";

/// `owner/model`, `owner/model@revision`, and `owner/model/FILE.gguf` of either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    id: String,
    revision: Option<String>,
    file: Option<String>,
}

impl HubModel {
    /// The model that a path names, where nothing lies there and it is written as a model's name is. A path whose first
    /// part is a folder here is one of that folder.
    pub fn named_by(path: &Path) -> Option<Self> {
        if path.exists() {
            return None;
        }
        let mut parts = Vec::new();
        for part in path.components() {
            let Component::Normal(part) = part else { return None };
            parts.push(part.to_str()?);
        }
        let (owner, model, file) = match parts[..] {
            [owner, model] => (owner, model, None),
            [owner, model, ref file @ ..] if !file.is_empty() => (owner, model, Some(file.join("/"))),
            _ => return None,
        };
        let (model, revision) = match model.split_once('@') {
            None => (model, None),
            Some((model, revision)) => (model, Some(revision.to_owned()).filter(|r| !r.is_empty())),
        };
        let is_gguf = |name: &str| Path::new(name).extension().is_some_and(|e| e == "gguf");
        let is_file = |name: &str| is_gguf(name) || Path::new(name).extension().is_some_and(|e| e == "onnx");
        if Path::new(owner).exists() || ![owner, model].into_iter().all(is_name) || is_file(model) {
            return None;
        }
        if file.as_deref().is_some_and(|file| !is_gguf(file)) {
            return None;
        }
        Some(Self { id: format!("{owner}/{model}"), revision, file })
    }

    /// `owner/model`
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The GGUF file, where the model is one.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// What is opened of a snapshot.
    pub(super) fn path_in(&self, snapshot: &Path) -> PathBuf {
        match &self.file {
            None => snapshot.to_owned(),
            Some(file) => snapshot.join(file),
        }
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        Ok(())
    }
}

/// Whether the hub takes it: letters, digits, `-`, `_` and `.`, not at the ends nor twice in a row, and 96 at most
/// (`validate_repo_id` of huggingface_hub).
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = ['-', '.'];
    !name.is_empty()
        && name.len() <= 96
        && name.chars().all(plain)
        && !name.starts_with(ends)
        && !name.ends_with(ends)
        && !["--", ".."].iter().any(|twice| name.contains(twice))
}

/// `owner/model@commit` of a folder in a cache, `…/models--owner--model/snapshots/COMMIT`, or of a file in one.
pub fn of_snapshot(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.components().filter_map(|part| part.as_os_str().to_str()).collect();
    let at = parts.iter().rposition(|part| *part == "snapshots")?;
    let commit = parts.get(at + 1)?;
    let model = parts.get(at.checked_sub(1)?)?.strip_prefix("models--")?;
    Some(format!("{}@{commit}", model.replacen("--", "/", 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_told_from_a_path() {
        let named = |text: &str| HubModel::named_by(Path::new(text)).map(|model| model.to_string());
        for name in [
            "HuggingFaceTB/SmolLM2-135M",
            "EleutherAI/pythia-70m@step3000",
            "org/m@0123456789abcdef0123456789abcdef01234567",
            "org/m-GGUF/m.Q8_0.gguf",
            "org/m-GGUF@v1/deep/m.Q8_0.gguf",
        ] {
            assert_eq!(named(name).as_deref(), Some(name));
        }
        assert_eq!(named("org/m@").as_deref(), Some("org/m"));
        for path in [
            "model",
            "./org/m",
            "/org/m",
            "../org/m",
            "org/m.onnx",
            "org/m.gguf",
            "org/m/file.bin",
            "org/m/",
            "src/gone",
            "org/a b",
            "org/-m",
            "org/m--n",
            "org/..m",
        ] {
            let expected = if path == "org/m/" { Some("org/m") } else { None };
            assert_eq!(named(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_snapshot_tells_its_model_and_commit() {
        let of = |text: &str| of_snapshot(Path::new(text));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let dir = format!("/c/hub/models--org--m--x/snapshots/{commit}");
        assert_eq!(of(&dir), Some(format!("org/m--x@{commit}")));
        assert_eq!(of(&format!("{dir}/m.gguf")), Some(format!("org/m--x@{commit}")));
        assert_eq!(of("/c/hub/datasets--org--m/snapshots/1"), None);
        assert_eq!(of("/c/models--org--m"), None);
        assert_eq!(of("snapshots/1"), None);
    }
}
