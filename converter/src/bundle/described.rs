//! How long the texts are that a model was made for, as its own description says.

use dijiang_format::files;
use serde_json::Value;
use std::path::Path;

/// Where a description has how many positions there are.
const POSITIONS: [&str; 3] = ["n_positions", "max_position_embeddings", "n_ctx"];

/// The positions in the model's own description, where a bundle has one.
pub fn positions(bundle: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(bundle.join(files::CONFIG)).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    POSITIONS.iter().find_map(|name| config[*name].as_u64()).filter(|positions| *positions > 1)
}

/// What is said of rows that are longer than that. A model that rotates by any position computes them all the same.
pub fn beyond(positions: Option<u64>, context: u64) -> Option<String> {
    let positions = positions.filter(|positions| *positions < context)?;
    Some(format!(
        "the model was made for {positions} positions, and rows of {context} tokens go beyond them, where it was never good (hint: --context {positions})"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_longer_is_told() {
        let home = tempfile::tempdir().expect("a directory");
        assert_eq!(positions(home.path()), None);
        let config = r#"{"max_position_embeddings": 256}"#;
        std::fs::write(home.path().join(files::CONFIG), config).expect("it is written");
        let found = positions(home.path());
        assert_eq!((found, beyond(found, 256), beyond(None, 512)), (Some(256), None, None));
        assert!(beyond(found, 257).is_some_and(|said| said.ends_with("(hint: --context 256)")));
    }
}
