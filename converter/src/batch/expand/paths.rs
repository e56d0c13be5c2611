//! Paths of a document: relative to the file that they stand in.

use std::path::{Component, Path, PathBuf};

/// The directory of a file. It is never empty, so that no path in it is taken for an option.
pub(super) fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) if parent.to_string_lossy().starts_with('-') => Path::new(".").join(parent),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("."),
    }
}

/// A path as it stands in a file. `..` is taken back here, not by the file system: what is checked is what is used.
pub(super) fn resolved(file: &Path, text: &str) -> PathBuf {
    let mut path = directory(file);
    for component in Path::new(text).components() {
        match component {
            Component::CurDir => {}
            // Nothing is above the root.
            Component::ParentDir if path.parent().is_none() && path.has_root() => {}
            Component::ParentDir if ends_in_name(&path) => {
                path.pop();
                if path.as_os_str().is_empty() {
                    path.push(".");
                }
            }
            component => path.push(component),
        }
    }
    path
}

fn ends_in_name(path: &Path) -> bool {
    matches!(path.components().next_back(), Some(Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_their_file() {
        let show = |file: &str, text: &str| resolved(Path::new(file), text).display().to_string();
        assert_eq!(show("jobs.yaml", "models/llama"), "./models/llama");
        assert_eq!(show("jobs.yaml", "-x"), "./-x");
        assert_eq!(show("-a/jobs.yaml", "x"), "./-a/x");
        assert_eq!(show("a/jobs.yaml", "./b/./c"), "a/b/c");
        assert_eq!(show("a/jobs.yaml", "../c"), "./c");
        assert_eq!(show("a/jobs.yaml", "../../c"), "./../c");
        assert_eq!(show("/r/jobs.yaml", "/abs/../x"), "/x");
        assert_eq!(show("/r/jobs.yaml", "../../../x"), "/x");
    }
}
