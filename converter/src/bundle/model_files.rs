//! The files of a bundle that are the model: those at the top of its directory, links followed. What training runs keep
//! lies deeper, and what killed runs left is hidden.

use std::io;
use std::path::{Path, PathBuf};

/// The files, in the order of their names.
pub fn paths(bundle: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(bundle)? {
        let entry = entry?;
        let is_hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
        if !is_hidden && std::fs::metadata(entry.path())?.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The bytes of all of them.
pub fn bytes(bundle: &Path) -> io::Result<u64> {
    paths(bundle)?.iter().map(|path| Ok(std::fs::metadata(path)?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_deeper_or_is_hidden_is_no_part_of_the_model() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(home.path().join("train")).expect("it is made");
        for (name, text) in [("a", "123"), (".a.tmp", "4"), ("train/b", "5678")] {
            std::fs::write(home.path().join(name), text).expect("it is written");
        }
        std::os::unix::fs::symlink("a", home.path().join("b")).expect("it is made");
        assert_eq!(paths(home.path()).expect("it is read"), ["a", "b"].map(|name| home.path().join(name)));
        assert_eq!(bytes(home.path()).expect("it is read"), 6);
        bytes(&home.path().join("none")).expect_err("it is not there");
    }
}
