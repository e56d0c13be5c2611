//! What lies at a path that a command was given, for messages that name what was meant.

use crate::files;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a missing file or directory is called in every message.
pub const NOTHING: &str = "there is no such file or directory";

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Nothing,
    Bundle,
    /// A Hugging Face checkpoint, or a folder of the cache that holds one.
    Checkpoint,
    /// An ONNX file, or a directory that holds one.
    Onnx,
    /// A file of a bundle.
    InBundle,
    File,
    Directory,
}

impl Place {
    /// Looks at names only; no file is opened.
    pub fn of(path: &Path) -> Self {
        let ends_in = |name: &Path, end: &str| name.extension().is_some_and(|e| e == end);
        let Ok(entries) = std::fs::read_dir(path) else {
            return match path.exists() {
                false => Self::Nothing,
                true if bundle_of(path).is_some() => Self::InBundle,
                true if ends_in(path, "onnx") => Self::Onnx,
                true if path.is_dir() => Self::Directory,
                true => Self::File,
            };
        };
        let names: Vec<PathBuf> =
            entries.filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name()))).collect();
        let holds = |name: &str| names.iter().any(|found| found.as_os_str() == name);
        let holds_any = |end: &str| names.iter().any(|name| ends_in(name, end));
        if holds(files::MANIFEST) {
            Self::Bundle
        } else if holds_any("safetensors") {
            Self::Checkpoint
        } else if holds_any("onnx") {
            Self::Onnx
        } else if holds(files::CONFIG) || holds("snapshots") {
            Self::Checkpoint
        } else {
            Self::Directory
        }
    }
}

/// The bundle that a file lies in.
pub fn bundle_of(file: &Path) -> Option<&Path> {
    let directory = file.parent()?;
    directory.join(files::MANIFEST).is_file().then_some(directory)
}

/// Why a path is no bundle: what is there instead, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoBundle {
    path: PathBuf,
    place: Place,
}

impl NoBundle {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), place: Place::of(path) }
    }
}

impl fmt::Display for NoBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let to_convert = |what: &str| {
            format!("this is {what}, not a bundle (hint: `dijiang convert {path} -o BUNDLE` makes one of it)")
        };
        let said = match self.place {
            Place::Nothing => {
                format!("{NOTHING} (hint: a bundle is what `dijiang convert MODEL -o {path}` writes)")
            }
            Place::Checkpoint => to_convert("a checkpoint"),
            Place::Onnx => to_convert("an ONNX model"),
            Place::InBundle => {
                let bundle = bundle_of(&self.path).filter(|bundle| !bundle.as_os_str().is_empty());
                let bundle = bundle.unwrap_or(Path::new(".")).display();
                format!("this is a file of a bundle (hint: name the bundle itself, {bundle})")
            }
            Place::File => "this is a file, and a bundle is a directory \
                 (hint: a bundle is what `dijiang convert MODEL -o BUNDLE` writes)"
                .to_owned(),
            Place::Bundle | Place::Directory => format!(
                "this directory is not a bundle: it has no {} \
                 (hint: a bundle is what `dijiang convert MODEL -o BUNDLE` writes)",
                files::MANIFEST
            ),
        };
        write!(f, "{path}: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_bundle_is_told_by_what_is_there() {
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        let file = |name: &str| {
            std::fs::create_dir_all(path(name).parent().expect("a parent")).expect("a directory");
            std::fs::write(path(name), "").expect("it is written");
        };
        let all = [
            "bundle/dijiang.json",
            "bundle/config.json",
            "bundle/model.onnx",
            "checkpoint/model.safetensors",
            "checkpoint/model.onnx",
            "configured/config.json",
            "cache/snapshots/1/config.json",
            "exported/model.onnx",
            "exported/config.json",
            "other/text",
        ];
        all.iter().for_each(|name| file(name));
        let expected = [
            ("bundle", Place::Bundle),
            ("bundle/model.onnx", Place::InBundle),
            ("checkpoint", Place::Checkpoint),
            ("configured", Place::Checkpoint),
            ("cache", Place::Checkpoint),
            ("exported", Place::Onnx),
            ("exported/model.onnx", Place::Onnx),
            ("other", Place::Directory),
            ("other/text", Place::File),
            ("nowhere", Place::Nothing),
        ];
        for (name, place) in expected {
            assert_eq!(Place::of(&path(name)), place, "{name}");
        }
    }
}
